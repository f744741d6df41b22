import math

import pytest

from optimum_ffp.evaluation import window_losses
from optimum_ffp.evaluation.metric import Perplexity
from tests.helpers import make_tiny_model, reference_losses


@pytest.mark.parametrize("positions", [256, 7], ids="chunks of {} positions".format)
def test_window_losses_equal_transformers_losses(tiny_model, windows, positions, monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", positions)
    expected = reference_losses(tiny_model, windows).tolist()
    for batch_size in (1, 4):
        assert window_losses(tiny_model, windows, batch_size).tolist() == pytest.approx(expected, rel=1e-5)


def test_perplexity_metric_is_exp_of_mean_loss(windows):
    model, batches = make_tiny_model(), []
    with model.get_input_embeddings().register_forward_hook(lambda *call: batches.append(len(call[-1]))):
        figures = Perplexity().compute(predictions=windows.tolist(), model=model, batch_size=4)
    assert figures["perplexity"] == pytest.approx(math.exp(window_losses(model, windows).mean()))
    assert figures["losses"] == pytest.approx(window_losses(model, windows).tolist())
    assert (figures["windows"], figures["window_length"], batches) == (6, 24, [4, 2])

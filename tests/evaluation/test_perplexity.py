import math

import pytest
import torch

from optimum_ffp.evaluation import window_losses
from optimum_ffp.evaluation.metric import Perplexity
from tests.helpers import make_tiny_model


def test_window_losses_equal_transformers_losses(tiny_model, windows):
    expected = [float(tiny_model(row[None], labels=row[None]).loss) for row in windows]
    for batch_size in (1, 4):
        assert window_losses(tiny_model, windows, batch_size).tolist() == pytest.approx(expected, rel=1e-5)


def test_window_losses_do_not_depend_on_logit_chunk_size(monkeypatch, windows):
    model = make_tiny_model()
    whole = window_losses(model, windows)
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", 7)
    assert torch.allclose(window_losses(model, windows), whole)


def test_perplexity_metric_is_exp_of_mean_loss(windows):
    model, batches = make_tiny_model(), []
    with model.get_input_embeddings().register_forward_hook(lambda *call: batches.append(len(call[-1]))):
        figures = Perplexity().compute(predictions=windows.tolist(), model=model, batch_size=4)
    assert figures["perplexity"] == pytest.approx(math.exp(window_losses(model, windows).mean()))
    assert figures["losses"] == pytest.approx(window_losses(model, windows).tolist())
    assert (figures["windows"], figures["window_length"], batches) == (6, 24, [4, 2])

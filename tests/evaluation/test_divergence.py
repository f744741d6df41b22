import pytest
import torch
from torch.nn.functional import kl_div

from optimum_ffp.data import Windows
from optimum_ffp.evaluation.divergence import Predictions
from optimum_ffp.evaluation.record import perplexity_record
from tests.helpers import make_tiny_model, prune_to_sizes


# Soft caps and scales of logits, a projection before the head.
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "opt"])
@torch.no_grad()
def test_chunked_kl_divergence_equals_full_logits_divergence(name, windows, monkeypatch):
    # Several pieces of a window.
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", 7)
    dense, pruned = make_tiny_model(name), prune_to_sizes(make_tiny_model(name))[0]
    expected, measured = (model(windows).logits[:, :-1].log_softmax(-1) for model in (dense, pruned))
    divergences = kl_div(measured, expected, reduction="none", log_target=True).sum(-1).mean(1).tolist()
    agreements = (measured.argmax(-1) == expected.argmax(-1)).float().mean(1).tolist()
    predictions, text = Predictions(dense, windows), Windows(windows, "text", "test")
    assert "divergence" not in perplexity_record(dense, text, 4, store=predictions)
    for parameter in dense.parameters():
        # The baseline isn't needed any more.
        parameter.fill_(torch.nan)
    record = perplexity_record(pruned, text, 1, baseline=predictions)
    assert record["divergences"] == pytest.approx(divergences, rel=1e-3) and min(divergences) > 1e-6
    assert record["agreements"] == pytest.approx(agreements)


def test_predictions_copy_only_lm_head(windows):
    model = make_tiny_model()
    predictions = Predictions(model, windows)
    assert predictions.head.num_parameters() == model.lm_head.weight.numel()
    assert predictions.head.lm_head.weight is not model.lm_head.weight


def test_predictions_reject_different_windows_and_vocabularies(windows):
    model = make_tiny_model()
    predictions = Predictions(model, windows)
    assert predictions.comparable(prune_to_sizes(make_tiny_model())[0], windows)
    assert not predictions.comparable(model, windows + 1) and not predictions.comparable(model, windows[:2])
    assert not predictions.comparable(make_tiny_model(vocab_size=136), windows)

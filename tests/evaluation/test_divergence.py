import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from accelerate.utils import OffloadedWeightsLoader
from torch.nn.functional import kl_div

from optimum_ffp.evaluation import Predictions, perplexity_record
from tests.helpers import make_tiny_model, prune_by_hand


ORIGIN = {"dataset": "text", "split": "test"}


def by_hand(dense, pruned, windows):
    """Divergence and share of equal tokens of every window, from the logits of whole windows."""
    expected, found = (model(windows).logits[:, :-1].log_softmax(-1) for model in (dense, pruned))
    divergences = kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean(1)
    return divergences.tolist(), (found.argmax(-1) == expected.argmax(-1)).float().mean(1).tolist()


# Soft caps and scales of logits, a projection before the head.
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere2", "gpt2", "opt"])
@pytest.mark.parametrize("positions", [7, 256])
@torch.no_grad()
def test_the_divergence_is_that_of_whole_models(name, positions, windows, monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", positions)
    dense, pruned = make_tiny_model(name), prune_by_hand(make_tiny_model(name))[0]
    divergences, agreements = by_hand(dense, pruned, windows)
    predictions = Predictions(dense, windows)
    own = perplexity_record(dense, windows, ORIGIN, 4, keep=predictions)
    assert "divergence" not in own
    for parameter in dense.parameters():
        # The baseline isn't needed any more.
        parameter.fill_(torch.nan)
    found = perplexity_record(pruned, windows, ORIGIN, 1, baseline=predictions)
    assert found["divergences"] == pytest.approx(divergences, rel=1e-3) and min(divergences) > 1e-6
    assert found["divergence"] == pytest.approx(sum(divergences) / len(windows), rel=1e-3)
    assert found["agreements"] == pytest.approx(agreements) and found["agreement"] == pytest.approx(
        sum(agreements) / len(windows)
    )


def test_what_a_baseline_predicts_takes_the_room_of_its_head(windows):
    model = make_tiny_model()
    kept = Predictions(model, windows)
    perplexity_record(model, windows, ORIGIN, 2, keep=kept)
    assert kept.model.num_parameters() == model.lm_head.weight.numel()
    assert kept.model.lm_head.weight is not model.lm_head.weight


def test_offloaded_weights_are_neither_copied_nor_in_the_way(windows):
    """As accelerate leaves the last layers and the head in host memory beside a GPU that they don't fit on."""
    dense, pruned = make_tiny_model(), prune_by_hand(make_tiny_model())[0]
    divergences, _ = by_hand(dense, pruned, windows)
    weights = OffloadedWeightsLoader(state_dict=dense.state_dict())
    names = ("model.layers.1", "model.layers.2", "lm_head")
    attach_align_device_hook_on_blocks(
        dense, {"": "cpu"} | dict.fromkeys(names, "cpu"), dict.fromkeys(names, True) | {"": False}, weights_map=weights
    )
    assert dense.lm_head.weight.is_meta
    predictions = Predictions(dense, windows)
    hook = predictions.model.lm_head._hf_hook
    found = [one.weights_map for one in getattr(hook, "hooks", (hook,)) if getattr(one, "weights_map", None)]
    assert found and all(one.dataset is weights for one in found)
    perplexity_record(dense, windows, ORIGIN, 2, keep=predictions)
    assert perplexity_record(pruned, windows, ORIGIN, 1, baseline=predictions)["divergences"] == pytest.approx(
        divergences, rel=1e-3
    )


def test_the_head_is_copied_once(windows):
    model = make_tiny_model()
    first = Predictions(model, windows)
    assert Predictions(model, windows[:2], first).model is first.model


def test_other_windows_and_vocabularies_are_not_compared(windows):
    model = make_tiny_model()
    predictions = Predictions(model, windows)
    assert predictions.fit(prune_by_hand(make_tiny_model())[0], windows)
    assert not predictions.fit(model, windows + 1) and not predictions.fit(model, windows[:2])
    model = make_tiny_model()
    model.resize_token_embeddings(model.config.vocab_size + 8)
    assert not predictions.fit(model, windows)

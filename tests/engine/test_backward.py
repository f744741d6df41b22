"""Gradients and losses against plain autograd on the whole model."""

import gc

import pytest
import torch

from optimum_ffp.engine import UNKNOWN, LayerwiseModel, backward_passes
from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import layerwise_of, make_tiny_model


def next_tokens(window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    """The label of a position is the token after it, and the last has none."""
    following = torch.cat([window[1:], torch.tensor([UNKNOWN])])
    return following[start : start + len(probabilities)]


def gradients_of(model, windows, module, labels_of=next_tokens):
    """Losses, and the gradients of a module's output, window by window."""
    found = []

    def watch(module, inputs, output):
        output.register_hook(lambda gradient: found.append(gradient.clone()))

    watched = {1: {module: watch}}
    losses = backward_passes(layerwise_of(model), windows, lambda layer: watched.get(layer, {}), labels_of)
    return losses, found


@pytest.fixture
def output(tiny_model):
    """The output projection of the attention of layer 1."""
    return find_units(tiny_model, find_family(tiny_model.config))[2].output.module


@pytest.mark.parametrize("positions", [256, 7], ids="chunks of {} positions".format)
def test_layerwise_gradients_equal_autograd(tiny_model, windows, output, positions, monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.lm_head.POSITIONS", positions)
    losses, gradients = gradients_of(tiny_model, windows, output)
    seen = []
    with output.register_forward_hook(lambda module, inputs, found: seen.append(found.requires_grad_())):
        for window, loss, gradient in zip(windows.split(1), losses, gradients):
            logits = tiny_model(window).logits[0, :-1]
            expected = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum")
            assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
            (by_autograd,) = torch.autograd.grad(expected, seen.pop())
            assert torch.allclose(gradient, by_autograd, rtol=1e-3, atol=1e-5)


def test_positions_without_label_have_no_gradient(tiny_model, windows, output):
    losses, (gradient,) = gradients_of(
        tiny_model,
        windows[:1],
        output,
        lambda window, probabilities, start: torch.full((len(probabilities),), UNKNOWN),
    )
    assert losses == [0] and not gradient.any()


def test_backward_leaves_no_weight_gradients_or_hooks(tiny_model, windows, output):
    forwards = [module.forward.__func__ for module in tiny_model.modules()]
    gradients_of(tiny_model, windows[:1], output)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tiny_model.parameters())
    assert not any(module._forward_hooks for module in tiny_model.modules())
    assert [module.forward.__func__ for module in tiny_model.modules()] == forwards


def test_weights_are_restored_after_error_in_backward_pass(windows):
    """Their copies in another dtype are freed though the graph of the layer had them."""
    model = make_tiny_model().to(torch.bfloat16)
    layerwise = LayerwiseModel(model, find_family(model.config), dtype=torch.float32)

    def fail(gradient: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    def watch(module, inputs, output) -> None:
        output.register_hook(fail)

    def watchers(index: int):
        return {layerwise.layers[index].mlp.down_proj: watch}

    with pytest.raises(RuntimeError, match="out of memory"):
        backward_passes(layerwise, windows, watchers, lambda window, found, start: torch.zeros(len(found)).long())
    gc.collect()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}

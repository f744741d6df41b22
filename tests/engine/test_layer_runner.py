import pytest
import torch

from optimum_ffp.modeling.families import find_family
from tests.helpers import layerwise_of


@pytest.fixture
def layers(tiny_model):
    return list(tiny_model.base_model.get_submodule(find_family(tiny_model.config).layers))


def runners(model, layers, windows, dtype=None):
    layerwise = layerwise_of(model)
    hidden, arguments = layerwise.embed(windows, dtype)
    return hidden, [layerwise.runner(layer, given, dtype) for layer, given in zip(layers, arguments)]


def states_by_hooks(model, layers, windows):
    """What every layer gives when the model runs as a whole."""
    seen = []

    def keep(module, inputs, output):
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    model(windows)
    for hook in hooks:
        hook.remove()
    return seen


def test_layer_outputs_equal_whole_model(tiny_model, layers, windows):
    hidden, run = runners(tiny_model, layers, windows)
    for runner, expected in zip(run, states_by_hooks(tiny_model, layers, windows)):
        hidden = torch.cat([runner.output(window) for window in hidden.split(1)])
        assert torch.allclose(hidden, expected, atol=1e-4)


def test_hidden_states_are_stored_in_given_dtype_without_leaving_hooks(tiny_model, layers, windows):
    hidden, run = runners(tiny_model, layers, windows, torch.bfloat16)
    assert hidden.dtype == torch.bfloat16 and hidden.shape == (6, 24, 32)
    after = hidden[:1].clone()
    run[0].advance(after)
    expected = states_by_hooks(tiny_model, layers[:1], windows[:1])[0]
    assert float((after - expected).norm() / expected.norm()) < 0.05
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_model.modules())

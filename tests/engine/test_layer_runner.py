import pytest
import torch

from optimum_ffp.engine import LayerRunner
from optimum_ffp.modeling.families import find_units, get_family
from tests.helpers import layerwise_of


@pytest.fixture
def layers(tiny_model):
    return list(tiny_model.base_model.get_submodule(get_family(tiny_model.config.model_type).layers))


def runners(model, layers, windows, dtype=None):
    hidden, arguments = layerwise_of(model).enter(windows, dtype)
    return hidden, [LayerRunner(layer, given, dtype) for layer, given in zip(layers, arguments)]


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


def test_layer_by_layer_is_the_model(tiny_model, layers, windows):
    hidden, run = runners(tiny_model, layers, windows)
    for runner, expected in zip(run, states_by_hooks(tiny_model, layers, windows)):
        hidden = torch.cat([runner(window) for window in hidden.split(1)])
        assert torch.allclose(hidden, expected, atol=1e-4)


def test_what_a_module_reads_on_the_way(tiny_model, layers, windows):
    module = find_units(tiny_model, get_family(tiny_model.config.model_type))[1].output.module
    hidden, run = runners(tiny_model, layers, windows)
    seen = []
    with module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        expected = run[0](hidden[:1])
    output, read = run[0].watch(module, hidden[:1])
    assert torch.equal(output, expected) and torch.equal(read, seen[0])
    assert torch.equal(run[0].input_of(module, hidden[:1]), seen[0])


def test_input_of_runs_no_further(tiny_model, layers, windows):
    attention, ffn = (
        unit.output.module for unit in find_units(tiny_model, get_family(tiny_model.config.model_type))[:2]
    )
    hidden, run = runners(tiny_model, layers, windows)
    ran = []
    with attention.register_forward_hook(lambda *_: ran.append("attention")):
        run[0].input_of(attention, hidden[:1])
        assert not ran
    with pytest.raises(AssertionError, match="runs whenever its layer does"):
        run[1].input_of(ffn, hidden[:1])


def test_states_wait_in_another_type_and_no_hook_stays(tiny_model, layers, windows):
    hidden, run = runners(tiny_model, layers, windows, torch.bfloat16)
    assert hidden.dtype == torch.bfloat16 and hidden.shape == (6, 24, 32)
    after = run[0](hidden[:1])
    assert after.dtype == torch.bfloat16
    expected = states_by_hooks(tiny_model, layers[:1], windows[:1])[0]
    assert float((after - expected).norm() / expected.norm()) < 0.05
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_model.modules())

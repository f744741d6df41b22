import torch

from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import statistics_of


def test_statistics_equal_moments_of_recorded_inputs(tiny_model, windows, monkeypatch):
    # Not a divisor of the widths.
    monkeypatch.setattr("optimum_ffp.analysis.gram.BLOCK", 7)
    units = find_units(tiny_model, find_family(tiny_model.config))
    recorded = {}

    def record(index):
        def hook(module, inputs):
            recorded[index] = inputs[0].flatten(0, -2)

        return hook

    hooks = [unit.output.module.register_forward_pre_hook(record(index)) for index, unit in enumerate(units)]
    tiny_model(windows)
    for hook in hooks:
        hook.remove()
    for batch_size in (1, 4):
        for index, found in enumerate(statistics_of(tiny_model, units, windows, batch_size)):
            inputs = recorded[index]
            assert torch.allclose(found.gram, inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-4)
            assert torch.allclose(found.mean, inputs.mean(0), rtol=1e-3, atol=1e-4)
            assert torch.allclose(found.variance, inputs.var(0, correction=0), rtol=1e-2, atol=1e-3)


def test_collecting_statistics_leaves_no_hooks(tiny_model, windows):
    units = find_units(tiny_model, find_family(tiny_model.config))
    statistics_of(tiny_model, units, windows)
    assert not any(unit.output.module._forward_pre_hooks for unit in units)

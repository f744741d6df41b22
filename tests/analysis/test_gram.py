import torch

from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import record_inputs, statistics_of


def test_statistics_equal_moments_of_recorded_inputs(tiny_model, windows, monkeypatch):
    # Not a divisor of the widths.
    monkeypatch.setattr("optimum_ffp.analysis.gram.BLOCK", 7)
    units = find_units(tiny_model, find_family(tiny_model.config))
    recorded = [record_inputs(tiny_model, unit.output.module, windows) for unit in units]
    for batch_size in (1, 4):
        for inputs, found in zip(recorded, statistics_of(tiny_model, units, windows, batch_size)):
            assert torch.allclose(found.gram, inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-4)
            assert torch.allclose(found.mean, inputs.mean(0), rtol=1e-3, atol=1e-4)
            assert torch.allclose(found.variance, inputs.var(0, correction=0), rtol=1e-2, atol=1e-3)
    assert not any(unit.output.module._forward_pre_hooks for unit in units)

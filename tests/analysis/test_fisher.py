import copy

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from optimum_ffp.analysis.fisher import collect_fisher, loss_curve
from optimum_ffp.compression.ridge import PrefixRidge
from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import layerwise_of, make_tiny_model, solve_ridge, statistics_of


def test_loss_curve_equals_ridge_regression_error():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weight, gram = torch.randn(5, 12, generator=generator), inputs.T @ inputs / 500
    curve = loss_curve(weight, PrefixRidge.of(gram, 0.01), 2 * torch.eye(5), block=1)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(12)
    for kept in range(1, 12):
        repaired = torch.zeros_like(weight)
        repaired[:, :kept] = solve_ridge(weight, gram, kept, 0.01)
        change = repaired - weight
        # Eq. 6 minimizes over S for the removed channels: its objective is the damped metric of the change.
        assert np.isclose(curve[kept], (change @ damped * change).sum(), rtol=1e-3)
    assert curve[12] == 0 and (np.diff(curve) <= 1e-9).all()


@pytest.mark.slow
def test_fisher_matrix_predicts_divergence_of_small_shift(tiny_model, windows, monkeypatch):
    monkeypatch.setattr("optimum_ffp.analysis.gram.BLOCK", 7)
    units = find_units(tiny_model, find_family(tiny_model.config))
    before = copy.deepcopy(tiny_model.state_dict())
    fishers = collect_fisher(layerwise_of(tiny_model), units, windows.repeat(8, 1))
    assert not any(unit.output.module._forward_hooks for unit in units)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
    logits = tiny_model(windows).logits.log_softmax(-1)
    unit, fisher = units[-1], fishers[-1]
    assert torch.allclose(fisher, fisher.T, atol=1e-6)
    # A constant shift d of the last FFN's output changes the KL divergence by d' G d / 2 to second order.
    shift = 0.05 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    hook = unit.output.module.register_forward_hook(lambda module, inputs, output: output + shift)
    moved = tiny_model(windows).logits.log_softmax(-1)
    hook.remove()
    measured = (logits.exp() * (logits - moved)).sum(-1).mean()
    predicted = shift @ fisher @ shift / 2
    # The shift is constant over tokens, so cross terms of different tokens vanish only in expectation.
    assert 0.5 < predicted / measured < 2.0


def test_fisher_matrices_do_not_depend_on_chunk_size(tiny_model, windows, monkeypatch):
    units = find_units(tiny_model, find_family(tiny_model.config))
    together = collect_fisher(layerwise_of(tiny_model), units, windows)
    monkeypatch.setattr("optimum_ffp.engine.layerwise_model.RESIDENT_BYTES", 1)
    assert layerwise_of(tiny_model).chunk_size(windows) == 1
    one_by_one = collect_fisher(layerwise_of(tiny_model), units, windows)
    assert all(torch.equal(one, other) for one, other in zip(together, one_by_one))
    assert not any("forward" in vars(layer) for layer in layerwise_of(tiny_model).layers)


def test_accelerate_hooks_are_kept(tiny_model, windows):
    units = find_units(tiny_model, find_family(tiny_model.config))
    layers = layerwise_of(tiny_model).layers
    alone = collect_fisher(layerwise_of(tiny_model), units, windows)
    for layer in layers:
        add_hook_to_module(layer, AlignDevicesHook("cpu", io_same_device=True))
    wrapped = [vars(layer)["forward"] for layer in layers]
    hooked = collect_fisher(layerwise_of(tiny_model), units, windows)
    assert all(torch.equal(one, other) for one, other in zip(alone, hooked))
    assert [vars(layer)["forward"] for layer in layers] == wrapped


def test_same_seed_gives_same_fisher_matrices(windows):
    model = make_tiny_model()
    units = find_units(model, find_family(model.config))
    first, again, other = (collect_fisher(layerwise_of(model), units, windows, seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_relative_statistics_are_scale_invariant(name, windows):
    model = make_tiny_model(name)
    family = find_family(model.config)
    assert family.normalized_outputs
    units = find_units(model, family)[-1:]
    module = units[0].output.module

    def measure(relative):
        (statistics,) = statistics_of(model, units, windows, relative=relative)
        (fisher,) = collect_fisher(layerwise_of(model), units, windows, relative=relative)
        return statistics.gram, fisher

    before, absolute = measure(True), measure(False)
    # The norm undoes what is done to the first token, so that the model's loss stays the same.
    scale = torch.ones(windows.shape[1], 1)
    scale[0] = 30
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * scale,))
    after, changed = measure(True), measure(False)
    hook.remove()
    for one, other in zip(before, after):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    assert not torch.allclose(absolute[0], changed[0], rtol=0.5)

"""What one backward pass says of all units, against losses that are really measured."""

import numpy as np
import pytest
import torch
from torch import nn

from optimum_ffp.analysis.size_gradients import measure_size_gradients
from optimum_ffp.compression.ridge import PrefixRidge
from tests.helpers import GROUPINGS, apply_policy, make_sorted_model, make_tiny_model, random_policy


STEP = 1e-3


def test_ridge_components_equal_difference_of_prefixes():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weight = torch.randn(5, 12, generator=generator)
    ridge = PrefixRidge.of(inputs.T @ inputs / 200)
    for start, stop in ((0, 4), (4, 5), (3, 12)):
        directions, mixing = ridge.components(weight, start, stop)
        expected = ridge.compensated(weight, stop)
        if start:
            expected = expected - nn.functional.pad(ridge.compensated(weight, start), (0, stop - start))
        assert torch.allclose(directions @ mixing.T, expected, atol=1e-4)


@pytest.mark.slow
def test_size_gradients_equal_finite_differences(tiny_model, windows):
    check_gradients(tiny_model, windows)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_size_gradients_of_query_heads_equal_finite_differences(grouping, windows):
    sizes, groups = GROUPINGS[grouping]
    check_gradients(make_tiny_model("qwen3", **sizes), windows, groups)


def check_gradients(model, windows, groups=(None,)):
    sorted_model, _ = make_sorted_model(model.double(), windows, groups)
    policy = random_policy(sorted_model, 2)
    down, up = policy.neighbors()
    found = measure_size_gradients(sorted_model, policy, windows)
    assert found.losses == pytest.approx(_losses(sorted_model, policy, policy, windows, 0, 0.0), rel=1e-6)
    for index in range(len(policy.units)):
        for neighbor, slope in ((down, found.down), (up, found.up)):
            below, above = (_losses(sorted_model, policy, neighbor, windows, index, step) for step in (-STEP, STEP))
            expected = (above - below) / (2 * STEP)
            assert np.allclose(slope[:, index], expected, atol=3e-4 + 1e-2 * np.abs(expected).max())


def _losses(sorted_model, policy, neighbor, windows, index, step):
    """Losses where one unit's output weight is moved this share of the way to that of its neighbor."""
    _, up = policy.neighbors()
    weights = {}
    for i, unit in enumerate(sorted_model.model_units):
        here, there, width = (one.sizes[i] * unit.output.block for one in (policy, neighbor, up))
        weight, other = (
            nn.functional.pad(
                sorted_model.ridges[i].compensated(sorted_model.dense_output(i), size), (0, width - size)
            )
            for size in (here, there)
        )
        weights |= [sorted_model.named_output(i, torch.lerp(weight, other, step) if i == index else weight)]
    with apply_policy(sorted_model, up, weights) as model:
        # In float64, as differences of them would be rounding errors otherwise.
        logits = model(windows).logits[:, :-1].double()
        return nn.functional.cross_entropy(logits.mT, windows[:, 1:], reduction="none").mean(1).detach().numpy()


def test_measuring_size_gradients_leaves_model_unchanged(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    before = sorted_model.model(windows).logits
    measure_size_gradients(sorted_model, random_policy(sorted_model, 1), windows[:2])
    assert torch.equal(sorted_model.model(windows).logits, before)
    assert all(parameter.grad is None for parameter in sorted_model.model.parameters())

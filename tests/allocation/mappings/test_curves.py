import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.policy import PruningPolicy, Unit
from tests.helpers import sparsity_budget


def falling_curve(groups: int, seed: int, decay: float) -> np.ndarray:
    steps = np.random.default_rng(seed).uniform(0.5, 1.5, groups) * decay ** np.arange(groups)
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.25, 0.4]))
def test_equal_scores_are_optimal_on_convex_curves(seed, sparsity):
    units = [Unit(layer, "channel", 6, 10) for layer in range(4)]
    # Convex: every further group that goes costs more than the one before.
    steps = np.sort(np.random.default_rng(seed).uniform(0, 1, (4, 6)))
    curves = [np.append(np.cumsum(row)[::-1], 0.0) for row in steps]
    budget = sparsity_budget(units, sparsity)
    policy = CurveMapping(curves)(np.zeros(4), budget)

    def loss(sizes):
        return sum(curve[size] for curve, size in zip(curves, sizes))

    affordable = [sizes for sizes in itertools.product(range(1, 7), repeat=4) if 10 * sum(sizes) <= budget.allowed]
    assert loss(policy.sizes) == pytest.approx(min(map(loss, affordable)))


def test_unit_with_larger_multiplier_keeps_more_groups():
    units = [Unit(layer, "channel", 100, 10) for layer in range(3)]
    mapping = CurveMapping([falling_curve(100, 0, 0.97)] * 3)
    sizes = [mapping(np.array([score, 0.0, 0.0]), sparsity_budget(units, 0.3)).sizes[0] for score in (-1.0, 0.0, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]


@given(st.integers(0, 100), st.floats(0.1, 0.6))
def test_tilted_curves_keep_more_of_later_layers(seed, sparsity):
    units = [Unit(layer, "channel", 100, 10) for layer in range(4)]
    mapping = CurveMapping([falling_curve(100, seed, 0.97)] * 4).tilted(units)
    sizes = mapping(np.zeros(4), sparsity_budget(units, sparsity)).sizes
    assert list(sizes) == sorted(sizes) and sizes[0] < sizes[-1]


def test_curve_parts_with_large_multipliers_are_kept():
    units = [Unit(layer, "channel", 12, 10) for layer in range(3)]
    mapping = CurveMapping([np.linspace(1.0, 0.0, 13)] * 3)
    scores = np.zeros((3, 4))
    # The last quarter of the first unit costs next to nothing, its third quarter much.
    scores[0] = [0, 0, 2, -2]
    scores[1:, 3] = 0.1
    assert mapping(scores, sparsity_budget(units, 1 / 12)).sizes == (9, 12, 12)
    assert mapping(scores, sparsity_budget(units, 2 / 12)).sizes[0] == 9


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.sampled_from([0.1, 0.25, 0.4]))
def test_equal_part_scores_equal_one_unit_score(scores, sparsity):
    units = [Unit(layer, "channel", 24, 10) for layer in range(4)]
    mapping = CurveMapping([falling_curve(24, layer, 0.9) for layer in range(4)])
    budget = sparsity_budget(units, sparsity, 0.2)
    whole, parts = mapping(np.array(scores), budget), mapping(np.tile(np.array(scores)[:, None], 12), budget)
    multiplier = np.exp(scores)
    costs = [float(multiplier @ mapping.predict(policy)) for policy in (whole, parts)]
    assert costs[0] == pytest.approx(costs[1])


def test_decreases_are_curve_differences_per_part():
    units = tuple(Unit(layer, "channel", 24, 10) for layer in range(2))
    mapping = CurveMapping([falling_curve(24, layer, 0.9) for layer in range(2)])
    fewer, more = PruningPolicy(units, (5, 24)), PruningPolicy(units, (14, 24))
    decreases = mapping.decreases(fewer, more, 12)
    assert decreases[0].sum() == pytest.approx(mapping.curves[0][5] - mapping.curves[0][14])
    assert decreases[0, 2] == pytest.approx(mapping.curves[0][5] - mapping.curves[0][6])
    assert np.flatnonzero(decreases[0]).tolist() == [2, 3, 4, 5, 6] and not decreases[1].any()

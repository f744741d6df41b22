"""Sizes under several limits, against scipy's solver of mixed-integer linear programs."""

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from optimum_ffp.allocation.budget import Budget, Limit, parameter_costs
from optimum_ffp.allocation.knapsack import lower_hull, minimize_loss
from optimum_ffp.allocation.policy import Unit
from tests.helpers import linear_costs


def random_problem(seed, layers=(4, 9), steps=(16, 49)):
    """Loss curves of a model and up to three limits: on parameters, on the KV cache, and on both in bytes."""
    generator = np.random.default_rng(seed)
    layers, heads, steps = (int(generator.integers(*bounds)) for bounds in (layers, (2, 9), steps))
    hidden, queries = int(generator.integers(256, 1024)), int(generator.integers(1, 5))
    units, head_bytes, curves = [], [], []
    for layer in range(layers):
        units.append(Unit(layer, "kv_group", heads, 2 * (queries + 1) * 64 * hidden))
        units.append(Unit(layer, "channel", steps * 32, 3 * hidden, multiple=32))
        # Some layers have a sliding window.
        head_bytes += [256 * int(generator.choice([1024, 4096])), 0]
    for unit in units:
        kept = np.arange(unit.groups + 1) / unit.groups
        curve = np.exp(0.8 * generator.normal()) * (1 - kept) ** generator.uniform(1, 3) / (0.3 + kept)
        decreases = -np.diff(curve) * np.exp(0.1 * generator.normal(size=unit.groups))
        curves.append(np.append(np.cumsum(decreases[::-1])[::-1], 0))
    parameters, cache = parameter_costs(units), linear_costs(units, head_bytes, [0] * len(units))
    both = [2 * one + 4 * other for one, other in zip(parameters, cache)]
    chosen = [("params", parameters), ("kv_cache", cache), ("memory", both)]
    chosen = [chosen[index] for index in ([0], [1], [2], [0, 1], [0, 1, 2])[seed % 5]]
    limits = []
    for name, costs in chosen:
        allowed = int(generator.uniform(0.55, 0.9) * sum(table[-1] for table in costs))
        limits.append(Limit(name, allowed, allowed, costs))
    return curves, Budget(units, limits, 0.2)


def least_loss(losses, budget, integrality=1):
    """Return the least loss or, without integrality, a lower bound."""
    owner = np.repeat(np.arange(len(losses)), [len(loss) for loss in losses])
    one_size_each = LinearConstraint((owner == np.arange(len(losses))[:, None]).astype(float), 1, 1)
    costs = np.concatenate(budget.costs, axis=1) / budget.allowed[:, None]
    return milp(
        np.concatenate(losses),
        constraints=[one_size_each, LinearConstraint(costs, -np.inf, 1)],
        integrality=np.full(len(owner), integrality),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    ).fun


def loss_of(curves, budget):
    """Return the loss of the policy for curves and that of each unit by its size, and check the limits."""
    losses = [curve[sizes] for curve, sizes in zip(curves, budget.sizes)]
    policy = minimize_loss(losses, budget)
    assert (budget.costs_of(policy.sizes) <= budget.allowed).all()
    return sum(curve[size] for curve, size in zip(curves, policy.sizes)), losses


@pytest.mark.parametrize(
    "seed", [*range(100, 105), *(pytest.param(one, marks=pytest.mark.slow) for one in range(105, 150))]
)
def test_loss_is_within_one_percent_of_optimum(seed):
    _, budget = problem = random_problem(seed)
    loss, losses = loss_of(*problem)
    assert loss <= 1.01 * least_loss(losses, budget)


@pytest.mark.parametrize("seed", range(100, 105))
def test_loss_of_large_model_is_near_lower_bound(seed):
    _, budget = problem = random_problem(seed, layers=(24, 41), steps=(100, 400))
    loss, losses = loss_of(*problem)
    # That of a relaxation, in which heads are fractional: no policy reaches it.
    assert loss <= 1.015 * least_loss(losses, budget, integrality=0)


def test_lower_hull_drops_points_above_it():
    x = np.arange(5)
    assert lower_hull(x, np.array([4.0, 3.5, 1.0, 0.9, 0.0])).tolist() == [0, 2, 4]

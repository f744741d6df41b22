"""Sizes that minimize the sum of losses under a budget: a multiple-choice knapsack problem. Uses numpy and scipy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, linprog
from scipy.sparse import csc_array

from .budget import Budget
from .policy import PruningPolicy


# A policy whose loss may be above the lowest possible one by more than this fraction is improved.
TOLERANCE = 0.01
# Number of evenly spaced sizes per unit that linear programs choose from, at most.
CHOICES = 64


def minimize_loss(losses: Sequence[np.ndarray], budget: Budget) -> PruningPolicy:
    """Return a policy that meets the budget, with a low sum of losses.

    Limits are added up, each times its Lagrange multiplier, to the price of a size. On the lower convex hulls of the
    losses over the price the greedy order of segments is optimal, but for the last one, which may not fit; the rest
    is allocated by `Budget.correct`. That is nearly optimal if steps are small, which weak duality proves. Otherwise
    sizes are chosen by branch and bound.

    Args:
        losses: Loss of the allowed sizes of every unit (`budget.sizes`), not increasing, each of shape `[sizes]`.
        budget: The limits.
    """

    def total(policy: PruningPolicy) -> float:
        return float(sum(loss[index] for loss, index in zip(losses, budget.indices(policy.sizes))))

    # With a single limit, the scale of the price doesn't matter.
    prices, segments = np.ones(1), []
    if len(budget.limits) > 1:
        # The dual values of the linear relaxation.
        _, relaxed = _solve(losses, budget)
        prices = -relaxed.ineqlin.marginals / budget.dense
    for index, (loss, sizes, costs) in enumerate(zip(losses, budget.sizes, budget.costs)):
        price = prices @ costs
        corners = lower_hull(price, loss)
        spent, gain = np.diff(price[corners]), -np.diff(loss[corners])
        gain = np.divide(gain, spent, out=np.zeros_like(gain), where=spent > 0)
        segments.append((np.full(len(gain), index), sizes[corners[1:]], np.diff(costs[:, corners]).T, spent, gain))
    unit, end, cost, spent, gain = (np.concatenate(column) for column in zip(*segments))
    # Segments without a price come first.
    order = np.lexsort((-gain, spent > 0))
    slack = budget.allowed - budget.costs_of(budget.smallest)
    fits = (np.cumsum(cost[order], axis=0) <= slack).all(1).cumprod().astype(bool)
    taken, rest = order[fits], order[~fits]
    sizes = budget.smallest.copy()
    # The segments of a unit are in the order of its sizes.
    np.maximum.at(sizes, unit[taken], end[taken])
    # Units with remaining segments come first, in the order of these.
    preference = np.array([*dict.fromkeys([*unit[rest], *range(len(losses))])])
    policy = budget.discretize_and_correct(sizes / budget.groups, preference)
    # Weak duality, at the price where the budget ends.
    prices = prices * (gain[rest[0]] if len(rest) else 0)
    bound = sum((loss + prices @ costs).min() for loss, costs in zip(losses, budget.costs)) - prices @ budget.allowed
    if total(policy) <= (1 + TOLERANCE) * bound:
        return policy
    # They meet the budget up to rounding errors of the solver.
    sizes, _ = _solve(losses, budget, integrality=1, options={"mip_rel_gap": TOLERANCE})
    return min(policy, budget.correct(sizes, preference, exact=False), key=total)


def _solve(losses: Sequence[np.ndarray], budget: Budget, **options: Any) -> tuple[np.ndarray, OptimizeResult]:
    """Minimize the sum of losses by a linear program, whose variables are the shares of sizes in units.

    Losses and costs are relative to the largest ones, since the tolerances of solvers are absolute. The result is the
    mean size of every unit with rounded shares, shape `[units]`, and that of `linprog`.
    """
    choices = [np.linspace(0, len(loss) - 1, min(len(loss), CHOICES)).round().astype(int) for loss in losses]
    loss, sizes, costs = (
        np.concatenate([table[..., choice] for table, choice in zip(tables, choices)], axis=-1)
        for tables in (losses, budget.sizes, budget.costs)
    )
    unit = np.repeat(np.arange(len(choices)), [len(choice) for choice in choices])
    of_unit = csc_array((np.ones(len(unit)), (unit, np.arange(len(unit)))))
    found = linprog(
        loss / sum(loss[0] for loss in losses),
        A_ub=costs / budget.dense[:, None],
        b_ub=budget.allowed / budget.dense,
        A_eq=of_unit,
        b_eq=np.ones(len(choices)),
        **options,
    )
    return of_unit @ (found.x.round() * sizes), found


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the indices of the corners of the lower convex hull of points sorted by `x`."""
    corners: list[int] = []
    for index in range(len(x)):
        while len(corners) > 1:
            first, second = corners[-2:]
            turn = (x[second] - x[first]) * (y[index] - y[first]) - (y[second] - y[first]) * (x[index] - x[first])
            if turn > 0:
                break
            corners.pop()
        corners.append(index)
    return np.array(corners)

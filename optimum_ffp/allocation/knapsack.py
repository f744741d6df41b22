"""Sizes that minimize the sum of losses under a budget: a multiple-choice knapsack problem. Uses only numpy."""

from collections.abc import Mapping, Sequence

import numpy as np

from .budget import Budget
from .policy import PruningPolicy


# Iterations of the search for multipliers, per limit.
ITERATIONS = 150
# A policy whose loss is above the lower bound by more than this fraction is improved.
TOLERANCE = 0.01
# Steps by which a unit is fixed above and below its size before the others are filled again, and the number of
# policies after which the best one is chosen by exchanges.
REACH, FINALISTS = 4, 16
# Steps by which units are changed in pairs.
JUMPS = [sign * steps for steps in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) for sign in (-1, 1)]
Losses = Sequence[np.ndarray]


def minimize_loss(losses: Losses, budget: Budget) -> PruningPolicy:
    """Return a policy that meets the budget, with a low sum of losses.

    Limits are added up, each times its Lagrange multiplier, to the price of a size. On the lower convex hulls of the
    losses over the price the greedy order of segments is optimal, but for the last one, which may not fit; the rest
    is allocated by `Budget.correct`. That is nearly optimal if steps are small, which weak duality proves. Otherwise
    one unit after the other is fixed at other sizes and the others are filled again, as long as this helps.

    Args:
        losses: Loss of the allowed sizes of every unit (`budget.sizes`), not increasing, each of shape `[sizes]`.
        budget: The limits.
    """

    def total(policy: PruningPolicy) -> float:
        return float(sum(loss[index] for loss, index in zip(losses, budget.indices(policy.sizes))))

    segments, bound = _segments(losses, budget)
    best, fixed = _fill(segments, budget, {}), {}
    while total(best) > (1 + TOLERANCE) * bound:
        tried = {best: fixed}
        for unit, (sizes, index) in enumerate(zip(budget.sizes, budget.indices(best.sizes))):
            for size in sizes[max(0, index - REACH) : index + REACH + 1]:
                changed = fixed | {unit: size}
                tried.setdefault(_fill(segments, budget, changed, exact=False), changed)
        finalists = sorted(tried, key=total)[:FINALISTS]
        exchanged = {_exchange(policy, losses, budget): tried[policy] for policy in finalists}
        found = min(exchanged, key=total)
        if total(found) >= total(best):
            break
        best, fixed = found, exchanged[found]
    return best


def _segments(losses: Losses, budget: Budget) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
    """Return the segments of the hulls, best first, as units, sizes at the end and costs, and the lower bound."""
    prices, rows = _prices(losses, budget), []
    for index, (loss, sizes, costs) in enumerate(zip(losses, budget.sizes, budget.costs)):
        price = prices @ costs
        corners = lower_hull(price, loss)
        spent, gain = np.diff(price[corners]), -np.diff(loss[corners])
        gain = np.divide(gain, spent, out=np.full_like(gain, np.inf), where=spent > 0)
        rows.append((np.full(len(gain), index), sizes[corners[1:]], np.diff(costs[:, corners]).T, gain))
    unit, end, cost, gain = (np.concatenate(column) for column in zip(*rows))
    order = np.argsort(-gain, kind="stable")
    segments = unit[order], end[order], cost[order]
    # Weak duality, at the price where the budget ends.
    prices = prices * np.append(gain[order], 0)[_affordable(segments[2], budget.slack(budget.smallest))]
    cheapest = sum((loss + prices @ costs).min() for loss, costs in zip(losses, budget.costs))
    return segments, cheapest - prices @ budget.allowed


def _affordable(costs: np.ndarray, slack: np.ndarray) -> int:
    """Return how many of the first segments fit, of costs of shape `[segments, limits]`."""
    return int((np.cumsum(costs, axis=0) <= slack).all(1).cumprod().sum())


def _fill(
    segments: tuple[np.ndarray, np.ndarray, np.ndarray],
    budget: Budget,
    fixed: Mapping[int, int],
    exact: bool = True,
) -> PruningPolicy:
    """Return the policy of the first segments that fit, corrected in the order of the others.

    Args:
        segments: Unit, size at the end and costs of all segments, best first.
        budget: The budget.
        fixed: Sizes of some units, by index, instead of those of segments.
        exact: As in `Budget.correct`. Otherwise later segments that fit are added too.
    """
    sizes = budget.smallest.copy()
    sizes[[*fixed]] = [*fixed.values()]
    free = ~np.isin(segments[0], [*fixed])
    unit, end, costs = (column[free] for column in segments)
    affordable = _affordable(costs, budget.slack(sizes))
    # The segments of a unit are in the order of its sizes.
    np.maximum.at(sizes, unit[:affordable], end[:affordable])
    if not exact:
        slack, blocked = budget.slack(sizes), set()
        for index in range(affordable, len(unit)):
            if unit[index] not in blocked and (costs[index] <= slack).all():
                sizes[unit[index]], slack = end[index], slack - costs[index]
            else:
                blocked.add(unit[index])
    # The next segment exceeds the budget. The rest is allocated to units in the order of their remaining segments.
    units, first = np.unique(unit[affordable:], return_index=True)
    unfinished = units[np.argsort(first)]
    finished = np.setdiff1d(np.arange(len(budget.units)), unfinished)
    return budget.discretize_and_correct(sizes / budget.groups, np.concatenate([unfinished, finished]), exact)


def _exchange(policy: PruningPolicy, losses: Losses, budget: Budget) -> PruningPolicy:
    """Return the policy after exchanges: as long as the loss falls, the best pair of units changes its sizes."""
    chosen = budget.indices(policy.sizes)
    while True:
        # The first move changes nothing, so that a single unit may change too.
        moves = [(0, chosen[0])]
        for unit, (index, sizes) in enumerate(zip(chosen, budget.sizes)):
            moves += [(unit, index + jump) for jump in JUMPS if 0 <= index + jump < len(sizes)]
        rises = np.array([losses[unit][index] - losses[unit][chosen[unit]] for unit, index in moves])
        costs = np.array([budget.costs[unit][:, index] - budget.costs[unit][:, chosen[unit]] for unit, index in moves])
        units = np.array([unit for unit, _ in moves])
        possible = (costs[:, None] + costs <= budget.slack(budget.policy_of(chosen).sizes)).all(2)
        possible[1:, 1:] &= units[1:, None] != units[1:]
        both = np.where(possible, rises[:, None] + rises, np.inf)
        pair = np.unravel_index(both.argmin(), both.shape)
        loss = np.array([loss[index] for loss, index in zip(losses, chosen)])
        # Sums of the same losses in another order differ in their last digits.
        if both[pair] > -1e-9 * loss.sum():
            return budget.correct(budget.policy_of(chosen).sizes, np.argsort(-loss), exact=False)
        for move in filter(None, pair):
            chosen[units[move]] = moves[move][1]


def _prices(losses: Losses, budget: Budget) -> np.ndarray:
    """Return the Lagrange multipliers of the limits, shape `[limits]`; their scale doesn't matter.

    They maximize the concave dual `Σ_i min_k (C_i(k) + p · c_i(k)) - p · allowed`, whose supergradient is the excess
    of the cheapest sizes over the limits: the ellipsoid method cuts off the half-space that it points away from.
    """
    count, units = len(budget.limits), np.arange(len(losses))
    if count == 1:
        return np.ones(1)
    # Costs are shares of the limits. Rows are padded by sizes that are never the cheapest.
    loss = np.full((len(losses), max(map(len, losses))), np.inf)
    cost = np.zeros((count, *loss.shape))
    for unit, (row, costs) in enumerate(zip(losses, budget.costs)):
        loss[unit, : len(row)], cost[:, unit, : len(row)] = row, costs / budget.allowed[:, None]
    # Beyond the steepest fall of a loss, the smallest size is the cheapest.
    falls = np.broadcast_to(np.where(np.isfinite(loss), loss[:, :1] - loss, 0), cost.shape)
    rises = cost - cost[:, :, :1]
    highest = np.divide(falls, rises, out=np.zeros_like(cost), where=rises > 0).max((1, 2))
    center, shape = highest / 2, count * np.diag(highest**2) / 4
    best, prices = -np.inf, center
    for _ in range(ITERATIONS * count):
        if (center < 0).any():
            direction = (center == center.min()).astype(float)
        else:
            priced = loss + np.tensordot(center, cost, 1)
            cheapest = priced.argmin(1)
            direction = cost[:, units, cheapest].sum(1) - 1
            value = priced[units, cheapest].sum() - center.sum()
            if value > best:
                best, prices = value, center
        step = shape @ direction / (np.sqrt(direction @ shape @ direction) + 1e-300)
        center = center + step / (count + 1)
        shape = count**2 / (count**2 - 1) * (shape - 2 / (count + 1) * np.outer(step, step))
    return prices / budget.allowed


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

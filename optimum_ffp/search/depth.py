"""Depth: which attentions, FFNs or layers are removed whole, and how many of them under a budget."""

import math
from collections.abc import Callable, Iterator, Sequence

from ..allocation.budget import Budget
from ..allocation.policy import PruningPolicy, Unit
from ..errors import FFPError


# Number of search windows that losses are measured on.
WINDOWS = 8
# Losses that are measured again before every removal.
REPEATED = 4
# Number of removals without an improvement after which no more are tried.
PATIENCE = 4
# Indices of units.
Part = tuple[int, ...]


def parts_of(units: Sequence[Unit], depth: str) -> list[Part]:
    """Return what can be removed whole: units with depth `"sublayers"`, and all units of a layer with `"layers"`."""
    if depth == "none":
        return []
    parts: dict[int, Part] = {}
    for index, unit in enumerate(units):
        key = index if depth == "sublayers" else unit.layer
        parts[key] = (*parts.get(key, ()), index)
    # Of an earlier prune, the attention or the FFN of a layer may be gone, or both.
    return [
        part
        for part in parts.values()
        if not any(units[index].required for index in part) and any(units[index].remaining for index in part)
    ]


def max_evaluations(parts: int) -> int:
    """Return an upper bound of the number of policies that `remove_whole` evaluates."""
    return 2 + parts * (2 + REPEATED)


def removals(
    units: Sequence[Unit], costs: Sequence[float], parts: Sequence[Part], loss_of: Callable[[PruningPolicy], float]
) -> Iterator[Part]:
    """Yield no units, then ever more to remove, each time the part whose removal adds least to the loss for its cost.

    The increase is measured on the model without what was removed before, and otherwise dense. It mostly grows with
    every removal, so that only the parts with the lowest earlier increases are measured again.

    Args:
        units: The units of the model.
        costs: Cost of every unit, such as its share in the parameters.
        parts: What can be removed. Parts without a cost stay.
        loss_of: Measures the loss of a policy.
    """

    def loss_without(removed: Part) -> float:
        sizes = (0 if index in removed else unit.remaining for index, unit in enumerate(units))
        return loss_of(PruningPolicy(tuple(units), tuple(sizes)))

    cost_of = {part: cost for part in parts if (cost := sum(costs[index] for index in part)) > 0}
    removed: Part = ()
    yield removed
    loss = loss_without(removed)
    increases = dict.fromkeys(cost_of, 0.0)
    measured = [*cost_of]
    while measured:
        losses = {part: loss_without(removed + part) for part in measured}
        increases |= {part: (losses[part] - loss) / cost_of[part] for part in measured}
        chosen = min(measured, key=increases.get)
        removed, loss = removed + chosen, losses[chosen]
        yield removed
        del increases[chosen]
        measured = sorted(increases, key=increases.get)[:REPEATED]


def remove_whole(
    budget: Budget,
    depth: str,
    policy_of: Callable[[Budget], PruningPolicy],
    loss_of: Callable[[PruningPolicy], float],
) -> Budget:
    """Return the budget without the units to remove whole: those of `removals` by which the loss is the lowest.

    Removing more leaves more heads and channels in the rest, since all policies meet the same budget. Numbers of
    removals are tried in ascending order, from the first that meets the budget until the rest stays whole, or the loss
    has not fallen `PATIENCE` times.

    Args:
        budget: The budget.
        depth: `"layers"` or `"sublayers"`.
        policy_of: Returns a policy that meets a budget without some of the units.
        loss_of: Measures the loss of a policy.

    Raises:
        FFPError: If no number of removals meets the budget.
    """
    units, chosen = budget.units, None
    best, waited, problem = math.inf, 0, None
    for removed in removals(units, budget.shares, parts_of(units, depth), loss_of):
        try:
            rest = budget.without(removed)
        except FFPError as error:
            problem = error
            continue
        policy = policy_of(rest)
        loss, waited = loss_of(policy), waited + 1
        if chosen is None or loss < best:
            chosen, best, waited = rest, loss, 0
        if waited == PATIENCE or all(size in (0, unit.remaining) for unit, size in zip(units, policy.sizes)):
            break
    if chosen is None:
        raise problem
    return chosen

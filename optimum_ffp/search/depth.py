"""Depth: which attentions, FFNs or layers are removed whole, and how many of them under a budget."""

import math
from collections.abc import Callable, Sequence

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
    """Return what can be removed whole: units with depth `"sublayers"`, and both units of a layer with `"layers"`."""
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
        if not any(units[index].required for index in part)
        and any(units[index].remaining for index in part)
        # Layers of a hybrid that have no attention stay.
        and (depth == "sublayers" or len(part) > 1)
    ]


def max_evaluations(parts: int) -> int:
    """Return an upper bound of the number of policies that `remove_whole` evaluates."""
    return 2 + parts * (2 + REPEATED)


def remove_whole(
    budget: Budget,
    depth: str,
    policy_of: Callable[[Budget], PruningPolicy],
    loss_of: Callable[[PruningPolicy], float],
) -> Budget:
    """Return the budget of the rest after the number of removals with which the pruned model has the lowest loss.

    Remove the part with the least loss per unit of cost next. That is measured on the model without what was removed
    before, and otherwise dense. It mostly grows with every removal, so that only the parts with the lowest earlier
    increases are measured again.

    Removing more leaves more heads and channels in the rest, since all policies meet the same budget. Numbers of
    removals are tried in ascending order, from the first that meets the budget until the rest stays whole, or the loss
    has not fallen `PATIENCE` times. `policy_of` returns a policy that meets a budget without some of the units.

    Raises:
        FFPError: If no number of removals meets the budget.
    """
    units, shares = budget.units, budget.shares

    def loss_without(removed: Part) -> float:
        sizes = (0 if index in removed else unit.remaining for index, unit in enumerate(units))
        return loss_of(PruningPolicy(units, tuple(sizes)))

    # Parts without a cost stay.
    share_of = {part: share for part in parts_of(units, depth) if (share := sum(shares[index] for index in part)) > 0}
    increases, measured = dict.fromkeys(share_of, 0.0), [*share_of]
    removed, loss = (), loss_without(())
    chosen, best, waited = None, math.inf, 0
    while True:
        try:
            rest = budget.without(removed)
        except FFPError:
            if not measured:
                raise
        else:
            policy = policy_of(rest)
            pruned, waited = loss_of(policy), waited + 1
            if chosen is None or pruned < best:
                chosen, best, waited = rest, pruned, 0
            is_whole = all(size in (0, unit.remaining) for unit, size in zip(units, policy.sizes))
            if waited == PATIENCE or is_whole or not measured:
                return chosen
        losses = {part: loss_without(removed + part) for part in measured}
        increases |= {part: (losses[part] - loss) / share_of[part] for part in measured}
        part = min(measured, key=increases.__getitem__)
        removed, loss = removed + part, losses[part]
        del increases[part]
        measured = sorted(increases, key=increases.__getitem__)[:REPEATED]

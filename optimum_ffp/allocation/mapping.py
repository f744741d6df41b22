"""The uniform policy, and functions that it shares with the mappings. Depends only on numpy."""

import numpy as np

from .budget import Budget
from .policy import PruningPolicy


def uniform(budget: Budget) -> PruningPolicy:
    """Return the policy with the same retention for every unit that has a cost.

    Attention sizes are rounded up to whole steps (as in Wanda-sp: 80 % of 3 KV groups are 3), and all FFNs are reduced
    equally to meet the budget: no two of a kind differ by more than one step.

    Raises:
        FFPError: If the budget has several limits.
    """
    costs, available = budget.linear()
    rates = np.full(len(budget.units), 1 - budget.sparsity)
    rates = level_ffns(rates, np.ceil(rates * budget.groups / budget.multiples - 1e-9), budget)
    # Sums are rounded instead of sizes, since equal sizes would all be rounded the same way.
    sums = np.floor(np.cumsum(rates * budget.groups / budget.multiples) + 1e-6)
    sizes = np.diff(sums, prepend=0).astype(np.int64) * budget.multiples
    # Steps of attention may be smaller than the remaining ones.
    quanta = costs * budget.multiples
    smallest = min(quanta[quanta > 0], default=1)
    growable = np.flatnonzero((quanta == smallest) & (sizes < budget.largest))
    steps = max(0, int((available - sizes @ costs) // smallest))
    chosen = growable[np.linspace(0, len(growable), min(steps, len(growable)), endpoint=False, dtype=int)]
    sizes[chosen] += budget.multiples[chosen]
    return budget.correct(sizes, np.arange(len(rates)))


def level_ffns(rates: np.ndarray, attention_steps: np.ndarray, budget: Budget) -> np.ndarray:
    """Return retentions with the given numbers of steps for attention, whose FFNs meet the budget of a single limit.

    If FFNs have no cost, attention meets it. All arrays have shape `[units]`.
    """
    # FFNs absorb the rounding of attention, whose steps are large.
    costs, available = budget.linear()
    ffns = np.array([unit.kind == "ffn" for unit in budget.units])
    members = ffns if costs[ffns].any() else ~ffns
    sizes = np.clip(attention_steps * budget.multiples, budget.smallest, budget.largest) * ~members
    leveled = fill(rates, budget, available - float(sizes @ costs), members)
    return np.where(members, leveled, sizes / budget.groups)


def fill(rates: np.ndarray, budget: Budget, available: float, members: np.ndarray | bool = True) -> np.ndarray:
    """Shift all retentions by one `τ` to meet a limit: `Σ clip(rates + τ, a_min, a_max) · w = available`.

    The bounds and the costs `w` are those of the budget; `members` is a mask of the units whose cost counts.
    """
    low, high = budget.smallest / budget.groups, budget.largest / budget.groups
    weights = budget.groups * budget.linear()[0] * members
    below, above = -2.0, 2.0
    for _ in range(60):
        level = (below + above) / 2
        if np.clip(rates + level, low, high) @ weights > available:
            above = level
        else:
            below = level
    return np.clip(rates + below, low, high)

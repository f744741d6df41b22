"""From raw scores to a policy that meets the budget: what mappings share, and the uniform policy. Numpy alone."""

from collections.abc import Callable
from importlib import import_module

import numpy as np

from .budget import Budget
from .policy import PruningPolicy


Mapping = Callable[[np.ndarray, Budget], PruningPolicy]


def find_mapping(name: str) -> Mapping:
    """`map_scores` of the module in `mappings` that a mapping is."""
    return import_module(f"{__package__}.mappings.{name.replace('-', '_')}").map_scores


def retention_scores(scores: np.ndarray, budget: Budget) -> tuple[np.ndarray, np.ndarray]:
    """Lines 1, 2 and 5 of Algorithm 1: raw scores to `A''` in `[a_min, a_max]` and the order of preference.

    The paper prints `tanh(A + 1)/2`, by which half of all scores clip to 0 and tie; `(tanh(A) + 1)/2` is meant.
    """
    scores = np.asarray(scores, dtype=np.float64)
    squashed = np.clip((np.tanh(scores) + 1) / 2, 0, 1)
    squashed = squashed * (budget.max_retention - budget.min_retention) + budget.min_retention
    return squashed, np.argsort(-scores, kind="stable")


def uniform(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """The same retention everywhere, whatever the scores.

    Attention keeps its share rounded up to whole KV groups (as Wanda-sp does: of 3 groups, 80 % are 3) and the FFNs
    make up for it together.
    """
    rates = np.full(len(budget.units), 1 - budget.sparsity)
    steps = np.ceil(rates * budget.groups / budget.multiples - 1e-9)
    return level_fine_units(rates, steps, budget, np.arange(len(rates)))


def level_fine_units(
    rates: np.ndarray, coarse_steps: np.ndarray, budget: Budget, preference: np.ndarray
) -> PruningPolicy:
    """A policy with these sizes of the coarse units, in which the fine ones meet the budget together.

    Args:
        rates: Retention of every unit before the budget is met, shape `[units]`.
        coarse_steps: Steps that every unit keeps; only those of coarse units are used, shape `[units]`.
        budget: Bounds and parameters to spend.
        preference: Unit indices, most important first, shape `[units]`.
    """
    # The rounding of coarse units is worth many steps of a fine one: all fine units share it, not the first in order.
    coarse = budget.quanta > budget.quanta.min()
    sizes = np.clip(coarse_steps * budget.multiples, budget.smallest, budget.largest) * coarse
    leveled = fill(rates, budget, budget.allowed - float(sizes @ budget.group_parameters), ~coarse)
    return budget.discretize_and_correct(np.where(coarse, sizes / budget.groups, leveled), preference)


def fill(rates: np.ndarray, budget: Budget, allowed: float, members: np.ndarray | bool = True) -> np.ndarray:
    """Rates moved by one `τ` so that they spend what is allowed: `Σ clip(rates + τ, a_min, a_max) · w = allowed`.

    Args:
        rates: Shape `[units]`.
        budget: Bounds.
        allowed: Parameters to spend.
        members: Which units spend them, shape `[units]`.
    """
    low, high = budget.smallest / budget.groups, budget.largest / budget.groups
    weights = budget.groups * budget.group_parameters * members
    below, above = -2.0, 2.0
    for _ in range(60):
        level = (below + above) / 2
        if np.clip(rates + level, low, high) @ weights > allowed:
            above = level
        else:
            below = level
    return np.clip(rates + below, low, high)

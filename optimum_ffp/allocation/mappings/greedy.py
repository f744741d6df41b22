"""The paper's Algorithm 1."""

import numpy as np

from ..budget import Budget
from ..mapping import retention_scores
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """The paper's Algorithm 1: fill units to `a_max` in descending order of score until the budget is spent.

    Only the order of the scores and the rest of the budget matter, so policies are all or nothing but for one unit.

    Args:
        scores: Raw action `A`, shape `[units]`.
        budget: Bounds and parameters to spend.
    """
    _, preference = retention_scores(scores, budget)
    low, high = budget.smallest / budget.groups, budget.largest / budget.groups
    weights = budget.groups * budget.group_parameters
    rates = low.copy()
    remaining = budget.allowed - float(low @ weights)
    for unit in preference:
        step = min(remaining, (high[unit] - rates[unit]) * weights[unit])
        rates[unit] += step / weights[unit]
        remaining -= step
        if remaining <= 0:
            break
    return budget.discretize_and_correct(rates, preference)

"""Greedy mapping of the paper's Algorithm 1."""

import numpy as np

from ..budget import Budget
from ..mapping import retention_scores
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """Fill units to `a_max` in descending order of score until the budget is spent (the paper's Algorithm 1).

    Policies depend only on the order of the scores and on the budget: before rounding, all units but one are at
    `a_min` or `a_max`.
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

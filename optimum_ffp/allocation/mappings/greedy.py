"""Greedy mapping of the paper's Algorithm 1."""

import numpy as np

from ..budget import Budget
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """Fill units to `a_max` in descending order of score until the budget is spent (the paper's Algorithm 1).

    Policies depend only on the order of the scores and on the budget: before rounding, all units but one are at
    `a_min` or `a_max`.
    """
    preference = np.argsort(-scores, kind="stable")
    costs, remaining = budget.linear()
    low, high, weights = budget.smallest / budget.groups, budget.largest / budget.groups, budget.groups * costs
    # Units without a cost stay whole.
    rates = np.where(weights > 0, low, high)
    remaining -= float(rates @ weights)
    for unit in preference[weights[preference] > 0]:
        step = min(remaining, (high[unit] - rates[unit]) * weights[unit])
        rates[unit] += step / weights[unit]
        remaining -= step
        if remaining <= 0:
            break
    return budget.discretize_and_correct(rates, preference)

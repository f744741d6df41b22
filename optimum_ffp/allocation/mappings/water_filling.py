"""Water-filling mapping, which shifts all retentions by the same amount."""

import numpy as np

from ..budget import Budget
from ..mapping import fill, level_ffns
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """Shift all retentions by one `τ` with `Σ clip(A'' + τ, a_min, a_max) · w = P Σ w`.

    A change of the budget changes every unit a little, where `greedy` moves few units between their bounds.
    """
    squashed = retention_scores(scores, budget)
    steps = fill(squashed, budget, budget.linear()[1]) * budget.groups / budget.multiples
    preference = np.argsort(-scores, kind="stable")
    return budget.discretize_and_correct(level_ffns(squashed, np.round(steps), budget), preference)


def retention_scores(scores: np.ndarray, budget: Budget) -> np.ndarray:
    """Return `A''` in `[a_min, a_max]` (lines 1 and 2 of Algorithm 1), shape `[units]`.

    The paper prints `tanh(A + 1)/2`, which clips half of all scores to 0; this uses `(tanh(A) + 1)/2`.
    """
    squashed = (np.tanh(scores.astype(np.float64)) + 1) / 2
    return squashed * (budget.max_retention - budget.min_retention) + budget.min_retention

"""Water-filling mapping, which shifts all retentions by the same amount."""

import numpy as np

from ..budget import Budget
from ..mapping import fill, level_ffns, retention_scores
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """Shift all retentions by one `τ` with `Σ clip(A'' + τ, a_min, a_max) · w = P Σ w`.

    A change of the budget changes every unit a little, where `greedy` moves few units between their bounds.
    """
    squashed, preference = retention_scores(scores, budget)
    steps = fill(squashed, budget, budget.linear()[1]) * budget.groups / budget.multiples
    return budget.discretize_and_correct(level_ffns(squashed, np.round(steps), budget), preference)

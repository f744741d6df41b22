"""All retentions raised or lowered together."""

import numpy as np

from ..budget import Budget
from ..mapping import fill, level_fine_units, retention_scores
from ..policy import PruningPolicy


def map_scores(scores: np.ndarray, budget: Budget) -> PruningPolicy:
    """Raises or lowers all retentions together: finds `τ` with `Σ clip(A'' + τ, a_min, a_max) · w = P Σ w`.

    Every unit moves a little where `greedy` moves a few from end to end.

    Args:
        scores: Raw action `A`, shape `[units]`.
        budget: Bounds and parameters to spend.
    """
    squashed, preference = retention_scores(scores, budget)
    steps = fill(squashed, budget, budget.allowed) * budget.groups / budget.multiples
    return level_fine_units(squashed, np.round(steps), budget, preference)

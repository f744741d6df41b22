"""Progressive scheduling: from easy and cheap to the real target (Eq. 3-5 of the paper)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Sparsity and fidelity curricula governed by one sigmoid.

    The paper prints Eq. 3 with `exp(-k (t0 - t))`, by which `α` would fall with `t`; the text says from easy to hard,
    so the sign is turned. Its k = 0.01 and t0 = 500 are for 1000 steps: for `T` steps `t0 = T / 2` and `k = 5 / t0`.

    Attributes:
        steps: Candidate evaluations in all, `T`.
        final_sparsity: `S_final`.
        max_samples: Search windows at full fidelity, `N_max`.
        start: `α_start`, the fraction of both that the search begins with; 1 switches the curriculum off.
    """

    steps: int
    final_sparsity: float
    max_samples: int
    start: float = 0.3

    def alpha(self, step: int) -> float:
        """`α(t) = α_start + (1 - α_start) · sigmoid(k (t - t0))`."""
        midpoint = self.steps / 2
        slope = 5 / midpoint
        return self.start + (1 - self.start) / (1 + math.exp(-slope * (step - midpoint)))

    def sparsity(self, step: int) -> float:
        """`σ_t = S_final · α(t)` (Eq. 4)."""
        return self.final_sparsity * self.alpha(step)

    def samples(self, step: int) -> int:
        """`N_eval(t) = round(N_max · α(t))`, at least 1 (Eq. 5)."""
        return max(1, round(self.max_samples * self.alpha(step)))

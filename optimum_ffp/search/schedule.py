"""The progressive schedule of sparsity and fidelity."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Sparsity and fidelity curricula governed by one sigmoid.

    The paper prints Eq. 3 with `exp(-k (t0 - t))`, with which `α` would decrease in `t`; its text describes a
    curriculum from easy to hard, so the sign is flipped. Its k = 0.01 and t0 = 500 are for 1000 steps: for `T` steps
    `t0 = T / 2` and `k = 5 / t0`.

    Attributes:
        steps: Total number of candidate evaluations, `T`.
        final_sparsity: `S_final`.
        max_samples: Number of windows per candidate at full fidelity, `N_max`.
        start: `α_start`, the initial fraction of sparsity and windows; 1 disables the curriculum.
    """

    steps: int
    final_sparsity: float
    max_samples: int
    start: float = 0.3

    def alpha(self, step: int) -> float:
        """Return `α(t) = α_start + (1 - α_start) · sigmoid(k (t - t0))`."""
        midpoint = self.steps / 2
        steepness = 5 / midpoint
        return self.start + (1 - self.start) / (1 + math.exp(-steepness * (step - midpoint)))

    def sparsity(self, step: int) -> float:
        """Return `σ_t = S_final · α(t)` (Eq. 4)."""
        return self.final_sparsity * self.alpha(step)

    def samples(self, step: int) -> int:
        """Return `N_eval(t) = round(N_max · α(t))`, at least 1 (Eq. 5)."""
        return max(1, round(self.max_samples * self.alpha(step)))

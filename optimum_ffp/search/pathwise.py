"""The default agent: follows the derivative of the reward, which one backward pass gives for all units."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..config import GRADIENT_COST, FFPConfig
from ..errors import FFPError
from ..policy import Unit
from .bandit import to_scores, trust_covariance
from .task import SearchResult, SearchTask


# How far an update goes towards what it has measured, at first, and how that falls: 1/2, 1/3, 1/4, ...
FIRST_RATE, RATE_DECAY = 0.5, 0.5
# Updates after which a search is believed no more at another sparsity: the next one may unlearn what it was told.
REMEMBERED = 4
# Curvature at the pruned model in multiples of that at the dense one. It is measured, within these bounds.
CURVATURE_RANGE = (0.5, 4.0)
# Standard error of a trust where a single window gives no other.
UNKNOWN_ERROR = 0.5


def search_by_gradient(
    task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None = None
) -> SearchResult:
    """Stochastic approximation of the policy whose curves are right where it stands.

    The action is the logarithm of the trust in every loss curve, as for the bandit, but the reward's derivative is not
    guessed from how candidates compare: it is followed through the model (a pathwise derivative). At the policy of
    the trusts `θ` it says how much every unit's loss really changes from one size to the next. What that is in
    multiples of the curve is `T(θ)`, and `θ ← θ + η_t (T(θ) - θ)` ends where all curves are right and so the marginal
    loss of a parameter is the same everywhere. Policies are made from `θ` smoothed: units of one kind that are close
    in depth lend each other strength.

    The evaluations that are left for finalists compare on all windows of the pool the last scores and the prior, and
    of a longer search the mean of the scores of its second half and the policy half-way to the prior too.

    Args:
        task: What to search for. Its actions are trusts of the curves behind `task.predict`.
        config: Windows of one update.
        warm_start: Trusts of a search at another sparsity.

    Raises:
        FFPError: If `warm_start` holds no trusts for this number of units.
    """
    estimate = TrustEstimate(task.units)
    if warm_start is not None:
        estimate.restore(warm_start)
    order = np.random.default_rng(config.seed).permutation(task.max_samples)
    trail = [estimate.scores]
    for update in range((task.steps - task.finalists) // GRADIENT_COST):
        windows = order[task.windows(config.update_samples, update * config.update_samples)]
        policy = task.map_scores(trail[-1], task.sparsity)
        fewer, more = task.slopes(policy, windows)
        here, down, up = (task.predict(one) for one in (policy, *policy.neighbours()))
        if np.isfinite(fewer).all() and np.isfinite(more).all():
            estimate.observe(fewer, more, np.maximum(down - here, 0), np.maximum(here - up, 0))
        trail.append(estimate.scores)
    answers = [trail[-1], np.zeros(task.actions), np.mean(trail[len(trail) // 2 :], axis=0), trail[-1] / 2]
    return task.conclude(answers[: task.finalists], estimate.state())


class TrustEstimate:
    """The trust in every unit's curve, as measured at the policies that it led to.

    With `C₋` and `C₊` what a unit's curve loses and gains from a step down and a step up, and `D₋` and `D₊` the
    first-order changes of the loss, the change of a whole step is `D + q C`: components of a unit's output are
    independent, so that the curve is the second-order term too, up to the curvature `q` at the pruned model. Since the
    terms that other units contribute to `D` are odd, `D₋ + D₊ = -2 q C₊`, which is pooled over all updates and all
    units of a kind. The trust is then `(D₋ + q C₋ - D₊ - q C₊) / (C₋ + C₊)`.

    Args:
        units: The model's units.
    """

    def __init__(self, units: Sequence[Unit]):
        self.trust, self.variance, self.updates = np.ones(len(units)), np.zeros(len(units)), 0
        self._covariance = trust_covariance(units)
        kinds = np.array([unit.kind for unit in units])
        self._members = [kinds == kind for kind in np.unique(kinds)]
        self._curvatures = np.zeros((len(self._members), 2))

    def observe(self, fewer: np.ndarray, more: np.ndarray, loses: np.ndarray, gains: np.ndarray) -> None:
        """Moves towards what was measured at one policy.

        Args:
            fewer: `D₋`, nats a token, shape `[windows, units]`.
            more: `D₊`, the same.
            loses: `C₋`, shape `[units]`; 0 where a unit can't become smaller.
            gains: `C₊`, shape `[units]`; 0 where a unit can't become larger.
        """
        curvature = self._curvature(fewer.mean(0) + more.mean(0), (loses > 0) & (gains > 0), gains)
        change = (fewer + curvature * loses) * (loses > 0) - (more + curvature * gains) * (gains > 0)
        scale = loses + gains
        # A unit that can't change, or whose curve is flat, is believed whatever it is.
        found = np.divide(change, scale, out=np.ones_like(change), where=scale > 0)
        error = np.full(found.shape[1], UNKNOWN_ERROR**2)
        if len(found) > 1:
            each = found.var(0, ddof=1) / len(found)
            for members in self._members:
                error[members] = each[members].mean()
        rate = FIRST_RATE / (1 + RATE_DECAY * self.updates)
        self.trust = self.trust + rate * (found.mean(0) - self.trust)
        self.variance = (1 - rate) ** 2 * self.variance + rate**2 * error
        self.updates += 1

    def _curvature(self, sums: np.ndarray, both: np.ndarray, gains: np.ndarray) -> np.ndarray:
        curvature = np.ones(len(sums))
        for members, pooled in zip(self._members, self._curvatures):
            pooled += -sums[members & both].sum(), 2 * gains[members & both].sum()
            if pooled[1] > 0:
                curvature[members] = np.clip(pooled[0] / pooled[1], *CURVATURE_RANGE)
        return curvature

    @property
    def scores(self) -> np.ndarray:
        """Raw scores of a curve mapping: the logarithm of the posterior mean of trusts that are smooth in depth."""
        centre = np.median(self.trust)
        noisy = self._covariance + np.diag(self.variance + 1e-6)
        return to_scores(centre + self._covariance @ np.linalg.solve(noisy, self.trust - centre))

    def state(self) -> dict[str, np.ndarray]:
        """What a search at another sparsity goes on from."""
        return {"trust": self.trust, "variance": self.variance, "updates": np.array([self.updates])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes over what a search at another sparsity has measured.

        Raises:
            FFPError: If it is of another kind or for another number of units.
        """
        shapes = [getattr(state.get(name), "shape", None) for name in ("trust", "variance", "updates")]
        if shapes != [self.trust.shape, self.trust.shape, (1,)]:
            raise FFPError(
                f"the warm-start agent has no trusts in the curves of {len(self.trust)} units; warm-start from a "
                "checkpoint of the same model that the same kind of agent has searched"
            )
        self.trust, self.variance = state["trust"], state["variance"]
        self.updates = min(int(state["updates"][0]), REMEMBERED)

"""The default agent: follows the derivative of the reward, which one backward pass gives for all units."""

from collections.abc import Mapping

import numpy as np

from ..config import FFPConfig
from ..options import GRADIENT_COST
from .curve_posterior import PARTS, MultiplierRegression, to_scores
from .task import SearchResult, SearchTask


# How far a policy goes from the prior towards what was measured: slopes are those of one unit at a time, and what many
# units gain together is less.
DAMPING = 0.5


def search_by_gradient(
    task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None = None
) -> SearchResult:
    """Stochastic approximation of the policy whose curves are right where it stands.

    The action is the logarithm of the trust in every part of every loss curve, and the reward's derivative is not
    guessed from how candidates compare, as by the bandit: it is followed through the model (a pathwise derivative). At
    a policy it says for every unit how the loss really changes from its size to the next smaller and larger one, which
    a regression turns into multipliers of the curves around that size. The next policy is made from them. That ends where
    no step of a unit is worth more than another's, and every update measures anew the steps that the last one took.

    The evaluations that are left for finalists compare on all windows of the pool the last scores and the prior, and
    of a longer search what the multipliers ask for undamped and the mean of the scores of its second half too.

    Args:
        task: What to search for. Its actions are multipliers of parts of `task.curves`.
        config: Windows of one update.
        warm_start: What a search at another sparsity has measured.

    Raises:
        FFPError: If `warm_start` is not of this number of units.
    """
    multipliers = MultiplierRegression(task.units)
    if warm_start is not None:
        multipliers.restore(warm_start)
    order = np.random.default_rng(config.seed).permutation(task.max_samples)
    trail = [multipliers.solve()]
    for update in range((task.steps - task.finalists) // GRADIENT_COST):
        windows = order[task.windows(config.update_samples, update * config.update_samples)]
        policy = task.map_scores(_damped(trail[-1]), task.sparsity)
        down, up = task.slopes(policy, windows)
        if np.isfinite(down).all() and np.isfinite(up).all():
            smaller, larger = policy.neighbours()
            falls_down = task.curves.falls(smaller, policy, PARTS)
            multipliers.observe(down, up, falls_down, task.curves.falls(policy, larger, PARTS))
        trail.append(multipliers.solve())
    settled = np.mean([_damped(multiplier) for multiplier in trail[len(trail) // 2 :]], axis=0)
    answers = [_damped(trail[-1]), np.zeros(task.actions), to_scores(trail[-1]), settled]
    return task.conclude(answers[: task.finalists], multipliers.state())


def _damped(multiplier: np.ndarray) -> np.ndarray:
    return to_scores(1 + DAMPING * (multiplier - 1))

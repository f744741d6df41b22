"""The default agent: follows the derivative of the reward, which one backward pass gives for all units."""

import numpy as np

from ...config import FFPConfig
from ...options import GRADIENT_COST
from ..curve_posterior import PARTS, MultiplierRegression, to_scores
from ..task import AgentState, SearchResult, SearchTask


# Step from the loss curves towards the measured multipliers: size gradients change one unit at a time, and several
# units together gain less than the sum.
DAMPING = 0.5


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Stochastic approximation of the policy whose curves are right where it stands.

    The action is the logarithm of a multiplier for every part of every loss curve. The derivative of the reward is not
    estimated from differences between candidates, as by the bandit, but computed through the model (a pathwise
    derivative): it gives the change of the loss between a unit's size and the next smaller and larger one. A
    regression turns these size gradients into multipliers of the curves around that size, from which the next policy
    is made. The fixed point is a policy in which no unit's step is worth more than another's.

    The evaluations that are left for finalists compare, on all search windows, the last scores and those of the curves
    alone, and in a longer search also the undamped multipliers and the mean scores of the second half of the search.

    Args:
        task: What to search for. Its actions are multipliers of parts of `task.curves`.
        config: Windows of one update.
        warm_start: State of a search at another sparsity: its equations.

    Raises:
        FFPError: If `warm_start` is not of this number of units.
    """
    regression = MultiplierRegression(task.units)
    if warm_start is not None:
        regression.restore(warm_start)
    order = np.random.default_rng(config.seed).permutation(task.max_samples)
    trail = [regression.solve()]
    for update in range((task.steps - task.finalists) // GRADIENT_COST):
        windows = order[task.windows(config.update_samples, update * config.update_samples)]
        policy = task.map_scores(_damped(trail[-1]), task.sparsity)
        down, up = task.size_gradients(policy, windows)
        if np.isfinite(down).all() and np.isfinite(up).all():
            smaller, larger = policy.neighbours()
            falls_down = task.curves.falls(smaller, policy, PARTS)
            regression.observe(down, up, falls_down, task.curves.falls(policy, larger, PARTS))
        trail.append(regression.solve())
    settled = np.mean([_damped(values) for values in trail[len(trail) // 2 :]], axis=0)
    answers = [_damped(trail[-1]), np.zeros(task.actions), to_scores(trail[-1]), settled]
    return task.conclude(answers[: task.finalists], regression.state())


def _damped(multipliers: np.ndarray) -> np.ndarray:
    return to_scores(1 + DAMPING * (multipliers - 1))

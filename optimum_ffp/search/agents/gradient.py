"""The default agent, which follows the derivative of the reward: one backward pass yields it for all units."""

from collections.abc import Sequence

import numpy as np

from ...allocation.policy import Unit
from ...checkpoint.result import FoundPolicy
from ...config.prune import GRADIENT_COST
from ..curve_posterior import PARTS, MultiplierRegression, to_scores
from ..task import AgentState, SearchTask


# Step size from the loss curves towards the measured multipliers: size gradients are for changes of one unit at a
# time, and the gain of changing several units is less than the sum.
DAMPING = 0.5
# Finalists: the last scores, their mean, and the undamped ones.
FINALISTS = 3


def check_state(state: AgentState, units: Sequence[Unit]) -> None:
    """Raise `FFPError` if a search can't start from the state of an agent."""
    MultiplierRegression(units).restore(state)


def search(task: SearchTask) -> FoundPolicy:
    """Run a stochastic approximation of the policy at which the loss curves agree with the size gradients.

    The action is the logarithm of a multiplier for every part of every loss curve. The derivative of the reward is not
    estimated from differences between candidates, but computed through the model (a pathwise derivative): it gives the
    change of the loss between a unit's size and the next smaller and larger one. A regression converts these size
    gradients to multipliers of the curves around that size, which determine the next policy. The fixed point is a
    policy in which no unit's step is worth more than another's.

    The evaluations reserved for finalists compare the last scores and their mean over the second half of the search,
    and in a longer search also the undamped multipliers. A warm start has the equations of another sparsity's search.
    """
    # The config requires mapping 'curves'.
    assert task.curves is not None
    regression, read = MultiplierRegression(task.budget.units), task.plan.update_samples
    if task.warm_start is not None:
        regression.restore(task.warm_start)
    order = np.random.default_rng(task.plan.seed).permutation(task.max_samples)
    finalists = min(task.finalists, FINALISTS)
    multipliers = [regression.solve()]
    for update in range((task.steps - finalists) // GRADIENT_COST):
        windows = order[task.windows(read, update * read)]
        policy = task.map_scores(_damped(multipliers[-1]))
        down, up = task.size_gradients(policy, windows)
        smaller, larger = policy.neighbors()
        decreases = task.curves.decreases(smaller, policy, PARTS), task.curves.decreases(policy, larger, PARTS)
        regression.observe(down, up, *decreases)
        multipliers.append(regression.solve())
    scores = [_damped(values) for values in multipliers]
    averaged = np.mean(scores[len(scores) // 2 :], axis=0)
    candidates = [scores[-1], averaged, to_scores(multipliers[-1])]
    return task.conclude(candidates[:finalists], regression.state())


def _damped(multipliers: np.ndarray) -> np.ndarray:
    return to_scores(1 + DAMPING * (multipliers - 1))

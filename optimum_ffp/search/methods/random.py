"""Random search around equal scores."""

import numpy as np

from ...checkpoint.result import FoundPolicy
from ...plan import Plan
from ..task import SearchTask


def spread_of(plan: Plan) -> float:
    """Return the standard deviation of random scores: PPO's where they multiply loss curves, otherwise a wide one."""
    return 0.1 if plan.mapping == "curves" else 0.5


def search(task: SearchTask) -> FoundPolicy:
    """Draw candidates around equal scores, including equal scores, and compare the best ones as finalists."""
    generator = np.random.default_rng(task.plan.seed)
    if task.steps <= task.finalists:
        return task.conclude([np.zeros(task.actions)])
    scores = spread_of(task.plan) * generator.standard_normal((task.steps - task.finalists, task.actions))
    scores[0] = 0
    losses = evaluate(task, scores)
    return task.conclude([*scores[np.argsort(losses)][: task.finalists]])


def evaluate(task: SearchTask, scores: np.ndarray) -> np.ndarray:
    """Return losses of candidates on the windows of one update, minus that of the dense model, shape `[candidates]`.

    Losses are in nats per token, scores have the shape `[candidates, actions]`.
    """
    # The same windows for all candidates: losses on different windows are not comparable.
    windows = task.windows(task.plan.update_samples)
    losses = []
    for start in range(0, len(scores), task.plan.candidates):
        policies = [task.map_scores(row) for row in scores[start : start + task.plan.candidates]]
        losses.append(task.excess_losses(policies, windows))
    return np.concatenate(losses)

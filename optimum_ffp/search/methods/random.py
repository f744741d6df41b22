"""Random search around equal scores."""

import numpy as np

from ...checkpoint.result import SearchResult
from ...config import FFPConfig
from ..task import AgentState, SearchTask


def spread_of(config: FFPConfig) -> float:
    """Return the standard deviation of random scores: PPO's where they multiply loss curves, otherwise a wide one."""
    return 0.1 if config.mapping == "curves" else 0.5


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Draw candidates around equal scores, including equal scores, and compare the best ones as finalists."""
    generator = np.random.default_rng(config.seed)
    if task.steps <= task.finalists:
        return task.conclude([np.zeros(task.actions)])
    scores = spread_of(config) * generator.standard_normal((task.steps - task.finalists, task.actions))
    scores[0] = 0
    losses = evaluate(task, config, scores)
    return task.conclude(scores[np.argsort(losses)][: task.finalists])


def evaluate(task: SearchTask, config: FFPConfig, scores: np.ndarray) -> np.ndarray:
    """Evaluate candidates on the windows of one update.

    Args:
        task: The search task.
        config: Number of windows per update, and of candidates evaluated together.
        scores: Scores of the candidates, shape `[candidates, actions]`.

    Returns:
        Losses minus that of the dense model, in nats per token, shape `[candidates]`.
    """
    # The same windows for all candidates: losses on different windows are not comparable.
    windows = task.windows(config.update_samples)
    losses = []
    for start in range(0, len(scores), config.candidates):
        policies = [task.map_scores(row, task.sparsity) for row in scores[start : start + config.candidates]]
        losses.append(task.excess_losses(policies, task.sparsity, windows))
    return np.concatenate(losses)

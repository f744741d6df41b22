"""Every way to find a policy, by name."""

from collections.abc import Callable, Mapping

import numpy as np

from ..config import FFPConfig
from .task import SearchResult, SearchTask


Method = Callable[[SearchTask, FFPConfig, Mapping[str, np.ndarray] | None], SearchResult]


def search_with_agent(
    task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None
) -> SearchResult:
    """FastForward Pruning: single-step reinforcement learning with PPO."""
    # stable-baselines3 takes seconds to import; other methods don't need it.
    from .agent import search_with_ppo

    return search_with_ppo(task, config, warm_start)


def evaluate_once(task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None) -> SearchResult:
    """No search: the policy that scores of zero are mapped to."""
    task.rewards(np.zeros((1, task.actions)), task.sparsity, task.max_samples)
    perplexity, policy = task.best or (None, task.map_scores(np.zeros(task.actions), task.sparsity))
    return SearchResult(policy, perplexity, task.log)


METHODS: dict[str, Method] = {"ffp": search_with_agent, "uniform": evaluate_once}


def search(task: SearchTask, config: FFPConfig, warm_start: Mapping[str, np.ndarray] | None = None) -> SearchResult:
    """Runs the method that the config names."""
    return METHODS[config.method](task, config, warm_start)

"""Every way to find a policy, by name."""

from collections.abc import Callable, Mapping

import numpy as np

from ..config import FFPConfig
from .bandit import search_with_bandit
from .baselines import evaluate_once, search_at_random, search_by_evolution
from .gradient import search_by_gradient
from .task import SearchResult, SearchTask


Agent = Mapping[str, np.ndarray]
Method = Callable[[SearchTask, FFPConfig, Agent | None], SearchResult]


def search_with_agent(task: SearchTask, config: FFPConfig, warm_start: Agent | None) -> SearchResult:
    """FastForward Pruning: single-step reinforcement learning with the agent that the config names."""
    if config.agent == "gradient":
        return search_by_gradient(task, config, warm_start)
    if config.agent == "bandit":
        return search_with_bandit(task, config, warm_start)
    # stable-baselines3 takes seconds to import; nothing else needs it.
    from .agent import search_with_ppo

    return search_with_ppo(task, config, warm_start)


METHODS: dict[str, Method] = {
    "ffp": search_with_agent,
    "no-search": evaluate_once,
    "random": search_at_random,
    "evolutionary": search_by_evolution,
    "uniform": evaluate_once,
}
# Methods that evaluate one candidate whatever may be spent.
NO_SEARCH = ("no-search", "uniform")


def search(task: SearchTask, config: FFPConfig, warm_start: Agent | None = None) -> SearchResult:
    """Runs the method that the config names."""
    return METHODS[config.method](task, config, warm_start)

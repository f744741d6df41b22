"""FastForward Pruning: single-step reinforcement learning with the agent that the config names."""

from ...config import FFPConfig
from ..agents import find_agent_module
from ..task import AgentState, SearchResult, SearchTask


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Runs the agent, the module of that name in `agents`. Arguments, result and errors are the agent's."""
    return find_agent_module(config.agent).search(task, config, warm_start)

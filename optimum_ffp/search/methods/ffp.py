"""FastForward Pruning: single-step reinforcement learning with the agent of `config.agent`."""

from ...config import FFPConfig
from ..agents import find_agent_module
from ..task import AgentState, SearchResult, SearchTask


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Run the agent `config.agent`, a module in `agents`. Arguments, result and errors are those of the agent."""
    return find_agent_module(config.agent).search(task, config, warm_start)

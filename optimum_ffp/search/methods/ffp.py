"""FastForward Pruning: the single-step search of the agent `config.agent`."""

from ...checkpoint.result import SearchResult
from ...config import FFPConfig
from ...config.prune import find_choice
from ..task import AgentState, SearchTask


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Run the agent `config.agent`, a module in `agents`, which defines arguments, result and errors."""
    return find_choice("agent", config.agent).search(task, config, warm_start)

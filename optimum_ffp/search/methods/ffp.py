"""FastForward Pruning: the single-step search of the agent `plan.agent`."""

from ...checkpoint.result import SearchResult
from ..task import AgentState, SearchTask


def search(task: SearchTask, warm_start: AgentState | None = None) -> SearchResult:
    """Run the agent `plan.agent`, a module in `agents`, which defines arguments, result and errors."""
    return task.plan.function("agent")(task, warm_start)

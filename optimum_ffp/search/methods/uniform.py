"""No search: the same retention for every unit."""

from ...allocation.mapping import uniform
from ...checkpoint.result import SearchResult
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, warm_start: AgentState | None = None) -> SearchResult:
    """Return the uniform policy."""
    return SearchResult(uniform(task.budget))

"""No search: the policy that the option `policy` names."""

from ...checkpoint.result import SearchResult
from ...hub.record import read_policy
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, warm_start: AgentState | None = None) -> SearchResult:
    """Return the given policy."""
    return SearchResult(read_policy(task.plan.policy or "", task.units))

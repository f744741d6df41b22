"""No search: the policy that the option `policy` names."""

from ...checkpoint.result import SearchResult
from ...config import FFPConfig
from ...hub.record import read_policy
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> SearchResult:
    """Return the given policy."""
    return SearchResult(read_policy(config.policy, task.units))

"""No search: the mapping's policy for equal scores."""

import numpy as np

from ...checkpoint.result import SearchResult
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, warm_start: AgentState | None = None) -> SearchResult:
    """Return the policy for equal scores."""
    return SearchResult(task.map_scores(np.zeros(task.actions)))

"""No search: the mapping's policy for equal scores."""

import numpy as np

from ...checkpoint.result import Found
from ...config import FFPConfig
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> Found:
    """Return the policy for equal scores."""
    return Found(task.map_scores(np.zeros(task.actions), task.sparsity))

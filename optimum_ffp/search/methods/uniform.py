"""No search: the same retention for every unit."""

import numpy as np

from ...allocation.mapping import uniform
from ...checkpoint.result import Found
from ...config import FFPConfig
from ..task import AgentState, SearchTask


IS_BASELINE = True


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> Found:
    """Return the uniform policy."""
    return Found(uniform(np.zeros(task.actions), task.budget))

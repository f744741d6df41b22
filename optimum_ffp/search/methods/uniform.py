"""No search: the same retention for every unit."""

from ...allocation.mapping import uniform
from ...checkpoint.result import FoundPolicy
from ..task import SearchTask


IS_BASELINE = True


def search(task: SearchTask) -> FoundPolicy:
    """Return the uniform policy."""
    return FoundPolicy(uniform(task.budget))

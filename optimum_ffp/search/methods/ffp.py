"""FastForward Pruning: the single-step search of the agent `plan.agent`."""

from ...checkpoint.result import FoundPolicy
from ..task import SearchTask


def search(task: SearchTask) -> FoundPolicy:
    """Run the agent `plan.agent`, a module in `agents`, which defines arguments, result and errors."""
    return task.plan.function("agent")(task)

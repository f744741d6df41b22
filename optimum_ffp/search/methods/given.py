"""No search: the policy that the option `policy` names."""

from ...checkpoint.result import FoundPolicy
from ...hub.record import read_policy
from ..task import SearchTask


IS_BASELINE = True


def search(task: SearchTask) -> FoundPolicy:
    """Return the given policy."""
    return FoundPolicy(read_policy(task.plan.policy or "", task.budget.units))

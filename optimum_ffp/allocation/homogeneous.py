"""Policies with the same sizes in all layers. Depends only on numpy."""

from collections.abc import Callable
from functools import reduce

import numpy as np

from ..errors import FFPError
from .budget import Budget
from .policy import PruningPolicy


def homogeneous_policies(
    budget: Budget, is_possible: Callable[[PruningPolicy], bool] = lambda policy: True
) -> list[PruningPolicy]:
    """Return the policies that keep the same number of heads, channels or experts in every layer that isn't removed.

    There is one for every size of attention within the bounds, with the widest FFNs that meet the budget. If attention
    is so small that FFNs reach their bound, a policy is smaller than necessary; the largest possible one of those is
    returned only if there are no others. Units of a single kind, such as experts, have one policy, the largest.

    Args:
        budget: Bounds per unit and limits, of a model with equal layers.
        is_possible: Whether the model's class supports the sizes of a policy.

    Raises:
        FFPError: If layers lose heads of different kinds, or no policy is possible.
    """
    if len({unit.group for unit in budget.units}) > 2:
        raise FFPError(
            "some layers of this model lose KV groups and others query heads, so their sizes can't be equal; choose "
            "attention 'kv-groups' or 'query-heads'"
        )
    attention, kept = np.array([unit.kind == "attention" for unit in budget.units]), budget.largest > 0
    others = np.flatnonzero(~attention & kept)
    widths, costs = _common_sizes(budget, others)
    if not attention.any():
        fitting = np.flatnonzero((costs <= budget.allowed).all(1))
        return [budget.policy(kept * widths[fitting[-1]])]
    exact, smaller = [], []
    for heads, cost in zip(*_common_sizes(budget, np.flatnonzero(attention & kept))):
        slack = budget.allowed - cost - costs
        if fitting := np.flatnonzero((slack >= 0).all(1)).tolist():
            policy = budget.policy(kept * np.where(attention, heads, widths[fitting[-1]]))
            # All FFNs are as wide as possible, and could grow by a step.
            spare = fitting[-1] == len(widths) - 1 and (slack[-1] >= budget.quanta[:, others].sum(1)).all()
            (smaller if spare else exact).append(policy)
    policies = [policy for policy in exact if is_possible(policy)]
    policies = policies or [policy for policy in smaller if is_possible(policy)][-1:]
    if not policies:
        raise FFPError(
            f"{budget} can't be met with the same sizes in all layers: the model's own class doesn't support "
            "the remaining numbers of heads; choose method 'ffp', or remove less"
        )
    return policies


def _common_sizes(budget: Budget, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes that all of these equal units may have, and their total costs, shape `[sizes, limits]`."""
    # An earlier prune may have left fewer in some layers.
    count = min(len(budget.sizes[unit]) for unit in units)
    return budget.sizes[units[0]][:count], reduce(np.add, (budget.costs[unit].T[:count] for unit in units))

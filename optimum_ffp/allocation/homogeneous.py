"""Policies with the same sizes in all layers. Depends only on numpy."""

from collections.abc import Callable

import numpy as np

from ..errors import FFPError
from .budget import Budget
from .policy import PruningPolicy


def homogeneous_policies(
    budget: Budget, is_possible: Callable[[PruningPolicy], bool] = lambda policy: True
) -> list[PruningPolicy]:
    """Return the policies that keep the same number of heads and of channels in every layer.

    There is one for every size of attention within the bounds, with the widest FFNs that meet the budget: it keeps at
    most `budget.allowed` parameters, and less than a step of all FFNs below it. If attention is so small that FFNs
    reach their bound, a policy is sparser than necessary; the largest possible one of those is returned only if there
    are no others.

    Args:
        budget: Bounds per unit and the number of parameters to keep, of a model with equal layers.
        is_possible: Whether the model's class supports the sizes of a policy.

    Raises:
        FFPError: If layers lose heads of different kinds, or no policy is possible.
    """
    attention = np.array([unit.kind == "attention" for unit in budget.units])
    if len({unit.group for unit in budget.units}) > 2:
        raise FFPError(
            "some layers of this model lose KV groups and others query heads, so their sizes can't be equal; choose "
            "attention 'kv-groups' or 'query-heads'"
        )
    heads, channels = int(np.flatnonzero(attention)[0]), int(np.flatnonzero(~attention)[0])
    step = int(budget.quanta[~attention].sum())
    exact, sparser = [], []
    for size in range(budget.smallest[heads], budget.largest[heads] + 1, budget.multiples[heads]):
        remaining = budget.allowed - size * int(budget.group_parameters[attention].sum())
        width = remaining // step * int(budget.multiples[channels])
        if width >= budget.smallest[channels]:
            fits = width <= budget.largest[channels]
            policy = budget.policy(np.where(attention, size, min(width, budget.largest[channels])))
            (exact if fits else sparser).append(policy)
    policies = [policy for policy in exact if is_possible(policy)]
    policies = policies or [policy for policy in sparser if is_possible(policy)][-1:]
    if not policies:
        raise FFPError(
            f"sparsity {budget.sparsity:g} can't be met with the same sizes in all layers: the model's own class "
            "doesn't support the remaining numbers of heads; choose method 'ffp', or a lower sparsity"
        )
    return policies

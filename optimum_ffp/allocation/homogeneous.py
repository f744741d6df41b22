"""Policies whose layers are all alike. Only needs numpy."""

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
    most `budget.allowed` parameters, and less than a step of all FFNs below it. Where FFNs would have to be wider than
    the bounds allow attention is too small, so that the policy would be sparser than it must be; of those only the
    largest possible one is returned, where there are no others.

    Args:
        budget: Bounds per unit and the number of parameters to keep, of a model whose layers are alike.
        is_possible: Whether the model's class can have the sizes of a policy.

    Raises:
        FFPError: If layers lose heads of different kinds, or no policy is possible.
    """
    attention = np.array([unit.kind == "attention" for unit in budget.units])
    if len({unit.group for unit in budget.units}) > 2:
        raise FFPError(
            "some layers of this model lose KV groups and others query heads, so that they can't be alike; choose "
            "attention 'kv-groups' or 'query-heads'"
        )
    heads, channels = int(np.flatnonzero(attention)[0]), int(np.flatnonzero(~attention)[0])
    step = int(budget.quanta[~attention].sum())
    found, sparser = [], []
    for size in range(budget.smallest[heads], budget.largest[heads] + 1, budget.multiples[heads]):
        left = budget.allowed - size * int(budget.group_parameters[attention].sum())
        width = left // step * int(budget.multiples[channels])
        if width >= budget.smallest[channels]:
            fits = width <= budget.largest[channels]
            policy = budget.policy(np.where(attention, size, min(width, budget.largest[channels])))
            (found if fits else sparser).append(policy)
    found = [policy for policy in found if is_possible(policy)]
    found = found or [policy for policy in sparser if is_possible(policy)][-1:]
    if not found:
        raise FFPError(
            f"sparsity {budget.sparsity:g} can't be met by layers that are all alike: the model's own class can't "
            "have the numbers of heads that are left; choose method 'ffp', or a lower sparsity"
        )
    return found

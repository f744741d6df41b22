"""The same numbers of heads and channels in every layer, so that the dense model's class can run the result."""

import logging

import numpy as np

from ...allocation.homogeneous import homogeneous_policies
from ...checkpoint.result import FoundPolicy
from ..task import SearchTask


logger = logging.getLogger(__name__)

IS_BASELINE = True


def search(task: SearchTask) -> FoundPolicy:
    """Compare policies with different numbers of heads on the search windows.

    At most `plan.candidates` are compared: those with the lowest loss by the loss curves or, without curves, evenly
    spaced ones from the fewest to the most heads. A single one is not measured.

    Raises:
        FFPError: If the model's class supports the sizes of no such policy.
    """
    policies = homogeneous_policies(task.budget, task.is_homogeneous)
    heads = {policy.sizes[0] for policy in policies}
    if heads == {task.budget.units[0].groups} != {policy.sizes[0] for policy in homogeneous_policies(task.budget)}:
        logger.warning("the model's own class doesn't support fewer heads at this sparsity: attention is not pruned")
    if curves := task.curves:
        policies.sort(key=lambda policy: curves.predict(policy).sum())
    elif len(policies) > task.plan.candidates:
        chosen = np.linspace(0, len(policies) - 1, task.plan.candidates).round().astype(int)
        policies = [policies[index] for index in chosen]
    return task.choose(policies[: task.plan.candidates]) if task.plan.compares_policies else FoundPolicy(policies[0])

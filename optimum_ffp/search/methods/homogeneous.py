"""The same numbers of heads and of channels in every layer, so that the dense model's own class runs the result."""

import logging

import numpy as np

from ...allocation.homogeneous import homogeneous_policies
from ...checkpoint.result import Found
from ...config import FFPConfig
from ..task import AgentState, SearchTask


logger = logging.getLogger(__name__)

IS_BASELINE = True


def search(task: SearchTask, config: FFPConfig, warm_start: AgentState | None = None) -> Found:
    """Evaluate policies that differ in the share of attention on all search windows.

    Those are evaluated whose loss is lowest by the loss curves, at most `config.candidates`; without curves those in
    even steps from the fewest to the most heads.

    Raises:
        FFPError: If the model's class can't have the sizes of any such policy.
    """
    policies = homogeneous_policies(task.budget, task.is_homogeneous)
    heads = {policy.sizes[0] for policy in policies}
    if heads == {task.units[0].groups} != {policy.sizes[0] for policy in homogeneous_policies(task.budget)}:
        logger.warning("the model's own class can't have fewer heads at this sparsity: attention stays whole")
    if task.curves is not None:
        policies.sort(key=lambda policy: task.curves.predict(policy).sum())
    elif len(policies) > config.candidates:
        places = np.linspace(0, len(policies) - 1, config.candidates).round().astype(int)
        policies = [policies[place] for place in places]
    return task.choose(policies[: config.candidates])

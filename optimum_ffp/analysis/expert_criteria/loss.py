"""Increase of the loss when the tokens of an expert are routed to others; experts are removed one by one."""

from collections.abc import Mapping

import torch

from ...engine import LayerwiseModel
from ...modeling.families import ModelUnit
from ...plan import Plan
from ...utils.precision import autocast_dtype
from ..rerouting import removal_scores


def score(
    layerwise: LayerwiseModel, units: Mapping[int, ModelUnit], plan: Plan, windows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the scores of `removal_scores` on the windows of the Fisher matrix."""
    dtype = autocast_dtype(layerwise.model, plan.search_dtype)
    return removal_scores(layerwise, units, windows[: plan.fisher_samples], plan.seed, dtype)

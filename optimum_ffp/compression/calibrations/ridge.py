"""Ridge regression: the output projection of every unit compensates its removed groups (Eq. 6 and 7 of the paper)."""

from functools import partial

import torch

from ...modeling.families import Mixture
from ..calibration import Calibration, CalibrationTask
from ..expert_ridge import compensated_experts


def calibrate(task: CalibrationTask) -> Calibration:
    """Return the compensated output projections of all layers.

    Those of a mixture's experts (`compensated_experts`) are kept if they lower the held-out divergence.
    """
    if task.plan.vocabulary_alone:
        return Calibration()
    if isinstance(task.sorted_model.family, Mixture):
        return task.conclude("ridge", Calibration({}), compensated_experts(task))
    weights: dict[str, torch.Tensor] = {}
    for layer, _ in task.sorted_model.layerwise.iter_layers():
        weights |= task.journal.mapped(f"calibration-ridge-{layer}", partial(_compensated, task, layer))
    return Calibration(weights)


def _compensated(task: CalibrationTask, layer: int) -> dict[str, torch.Tensor]:
    weights = task.sorted_model.compensated(task.policy, task.sorted_model.members(layer))
    return {name: weight.to(task.sorted_model.layerwise.stored_dtype) for name, weight in weights.items()}

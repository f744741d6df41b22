"""Ridge regression: the output projection of every unit compensates its removed groups (Eq. 6 and 7 of the paper)."""

from functools import partial

import torch

from ..calibration import Calibration, CalibrationTask


def calibrate(task: CalibrationTask) -> Calibration:
    """Return the compensated output projections of all layers; nothing for a mixture, which has no ridge factors."""
    if not task.sorted_model.ridges:
        return Calibration()
    weights: dict[str, torch.Tensor] = {}
    for layer, _ in task.sorted_model.layerwise.iter_layers():
        weights |= task.journal.mapped(f"ridge-{layer}", partial(_compensated, task, layer))
    return Calibration(weights)


def _compensated(task: CalibrationTask, layer: int) -> dict[str, torch.Tensor]:
    weights = task.sorted_model.compensated(task.policy, task.sorted_model.members(layer))
    return {name: weight.to(task.sorted_model.layerwise.stored_dtype) for name, weight in weights.items()}

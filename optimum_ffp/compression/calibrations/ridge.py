"""Ridge regression: the output projection of every unit compensates its removed groups (Eq. 6 and 7 of the paper)."""

from functools import partial

import torch

from ...allocation.policy import PruningPolicy
from ...config import FFPConfig
from ...data import DataSplits
from ...utils.resume import Journal
from ..calibration import Calibration
from ..sorted_model import SortedModel


def calibrate(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    data: DataSplits,
    start_token: bool,
    config: FFPConfig,
    journal: Journal,
) -> Calibration:
    """Return the compensated output projections of all layers."""
    weights: dict[str, torch.Tensor] = {}
    for layer, _ in sorted_model.layerwise.iter_layers():
        weights |= journal.mapped(f"ridge-{layer}", partial(_compensated, sorted_model, policy, layer))
    return Calibration(weights)


def _compensated(sorted_model: SortedModel, policy: PruningPolicy, layer: int) -> dict[str, torch.Tensor]:
    weights = sorted_model.compensated(policy, sorted_model.members(layer))
    return {name: weight.to(sorted_model.layerwise.stored_dtype) for name, weight in weights.items()}

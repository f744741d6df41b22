"""Calibration of the weights of a policy: none, ridge regression, or distillation."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from ..allocation.policy import PruningPolicy
from ..config import FFPConfig
from ..data import DataSplits
from ..utils.precision import autocast_dtype
from ..utils.resume import Journal
from .distillation import distil, split_windows
from .sorted_model import SortedModel


class Calibration(NamedTuple):
    """Calibrated weights.

    Attributes:
        weights: Weights by the parameter's name, or `None` without calibration.
        record: Held-out errors of `layers` and of the `last_norm` by distillation, otherwise empty.
    """

    weights: dict[str, torch.Tensor] | None
    record: dict[str, Any]


def calibrate(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    data: DataSplits,
    start_token: bool,
    config: FFPConfig,
    journal: Journal,
) -> Calibration:
    """Calibrate the weights of a policy with the method of `config.calibration`.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: Number of groups to keep per unit.
        data: Calibration windows for the fits, and search windows to hold out.
        start_token: Whether every text begins with a start token.
        config: `calibration` and its options.
        journal: Saves the fits.
    """
    if config.calibration == "none":
        return Calibration(None, {})
    if config.calibration == "ridge":
        weights: dict[str, torch.Tensor] = {}
        for index, _ in sorted_model.layerwise.walk():
            weights |= journal.mapped(f"ridge-{index}", partial(_by_ridge, sorted_model, policy, index))
        return Calibration(weights, {})
    held_out = data.search.first(config.held_out_samples)
    windows, dtype = data.calibration.tokens, autocast_dtype(sorted_model.model, config.search_dtype)
    split = [split_windows(one, config.distillation_parts, start_token) for one in (windows, held_out.tokens)]
    options = config.distillation_passes, config.distillation_rate, config.distillation_batch
    found = distil(sorted_model, policy, *split, *options, config.seed, start_token, dtype, journal)
    record = {"layers": [{"layer": index} | fit.errors for index, fit in enumerate(found.layers)]}
    if found.last_norm is not None:
        record["last_norm"] = found.last_norm.errors
    return Calibration(found.weights, record | replace(held_out, tokens=split[1]).describe())


def _by_ridge(sorted_model: SortedModel, policy: PruningPolicy, layer: int) -> dict[str, torch.Tensor]:
    found = sorted_model.compensated(policy, sorted_model.members(layer))
    return {name: weight.to(sorted_model.layerwise.stored_dtype) for name, weight in found.items()}

"""Calibration of the output projections of a policy: none, ridge regression, or sequential."""

from typing import Any

import torch

from ..allocation.policy import PruningPolicy
from ..config import FFPConfig
from ..data import DataSplits
from ..utils.precision import autocast_dtype
from ..utils.resume import Journal
from .sequential import calibrate_sequentially
from .sorted_model import SortedModel


def repair(
    sorted_model: SortedModel, policy: PruningPolicy, data: DataSplits, config: FFPConfig, journal: Journal
) -> tuple[dict[int, torch.Tensor] | None, dict[str, Any]]:
    """Calibrate the output projections of a policy with the method of `config.calibration`.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: Number of groups to keep per unit.
        data: Calibration windows for the fits, and search windows to choose λ on.
        config: `calibration` and its options.
        journal: Saves the fit of every unit.

    Returns:
        Weights of the output projections by unit index, or `None` without calibration, and a record of the held-out
        error per unit, empty unless calibration is sequential.
    """
    if config.calibration == "none":
        return None, {}
    if config.calibration == "ridge":
        return sorted_model.compensated(policy), {}
    held_out = data.search.first(config.held_out_samples)
    fits = calibrate_sequentially(
        sorted_model,
        policy,
        data.calibration.tokens,
        held_out.tokens,
        config.dense_target,
        config.sequential_lambda,
        autocast_dtype(sorted_model.model, config.search_dtype),
        journal,
    )
    rows = [
        {"layer": unit.layer, "unit": unit.kind, "ridge_lambda": fit.ridge_lambda, "error": fit.held_out_error}
        for unit, fit in ((sorted_model.units[index], fit) for index, fit in sorted(fits.items()))
    ]
    return {index: fit.weight for index, fit in fits.items()}, {"units": rows} | held_out.describe()

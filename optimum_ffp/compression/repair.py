"""Calibration of the weights of a policy: none, ridge regression, sequential, or distillation."""

from typing import Any

import torch

from ..allocation.policy import PruningPolicy
from ..config import FFPConfig
from ..data import DataSplits
from ..utils.precision import autocast_dtype
from ..utils.resume import Journal
from .distillation import distil
from .sequential import calibrate_sequentially
from .sorted_model import SortedModel


def repair(
    sorted_model: SortedModel, policy: PruningPolicy, data: DataSplits, config: FFPConfig, journal: Journal
) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
    """Calibrate the weights of a policy with the method of `config.calibration`.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: Number of groups to keep per unit.
        data: Calibration windows for the fits, and search windows to hold out.
        config: `calibration` and its options.
        journal: Saves the fits.

    Returns:
        Weights by the parameter's name, or `None` without calibration, and a record of the held-out errors: of
        `layers` by distillation, of `units` by sequential calibration, otherwise empty.
    """
    if config.calibration == "none":
        return None, {}
    if config.calibration == "ridge":
        return sorted_model.compensated(policy), {}
    held_out = data.search.first(config.held_out_samples)
    windows, dtype = data.calibration.tokens, autocast_dtype(sorted_model.model, config.search_dtype)
    if config.calibration == "distillation":
        passes, rate = config.distillation_passes, config.distillation_rate
        layers = distil(sorted_model, policy, windows, held_out.tokens, passes, rate, config.seed, dtype, journal)
        rows = [{"layer": index, "before": fit.before, "error": fit.after} for index, fit in enumerate(layers)]
        weights = {name: weight for fit in layers for name, weight in fit.weights.items()}
        return weights, {"layers": rows} | held_out.describe()
    fits = calibrate_sequentially(
        sorted_model,
        policy,
        windows,
        held_out.tokens,
        config.dense_target,
        config.sequential_lambda,
        dtype,
        journal,
    )
    rows = [
        {"layer": unit.layer, "unit": unit.kind, "ridge_lambda": fit.ridge_lambda, "error": fit.held_out_error}
        for unit, fit in ((sorted_model.units[index], fit) for index, fit in sorted(fits.items()))
    ]
    weights = dict(sorted_model.named_output(index, fit.weight) for index, fit in fits.items())
    return weights, {"units": rows} | held_out.describe()

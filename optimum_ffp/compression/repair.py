"""What is done for the weights of a policy once it is found: nothing, ridge regression, or a fit layer by layer."""

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
    """Fits the output projections of a policy in the way that the config names.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: What to keep.
        data: Calibration windows to fit to, and search windows to choose λ on.
        config: `calibration` and its options.
        journal: Keeps what was fitted one by one.

    Returns:
        Weights of output projections by unit index, if they are others than the dense model's, and how well every one
        of a sequential calibration fits.
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

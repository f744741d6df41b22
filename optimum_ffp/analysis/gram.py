"""Gram matrices of the inputs of output projections, layer by layer over the calibration windows."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..engine import LayerwiseModel
from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.cholesky import ALGEBRA_BYTES, check_finite
from ..utils.device_memory import free_device_memory
from ..utils.precision import float32_products


# Rows of a Gram matrix that are computed together, from the diagonal on.
BLOCK = 256


@dataclass
class Statistics:
    """Statistics of the input `X` (tokens x features) of one unit's output projection.

    Attributes:
        gram: `H = XᵀX / n`, float32, shape `[features, features]`. Where a norm follows the projection, rows of `X`
            are divided by the norm of the projection's output.
        mean: Mean of every feature, float32, shape `[features]`.
        tokens: Number of tokens of this process.
    """

    gram: torch.Tensor
    mean: torch.Tensor
    tokens: int = 0

    @property
    def variance(self) -> torch.Tensor:
        """Variance of every feature over all tokens, shape `[features]`."""
        return (self.gram.diagonal() - self.mean**2).clamp_min(0)


def add_gram(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add the blocks of `rowsᵀ rows` on and above the diagonal to `total` in float32, regardless of autocast.

    The matrix is symmetric, so that these are all (`mirror`), at two thirds of the time. Rows have shape
    `[rows, features]`, and may be on another device than the total, which has shape `[features, features]`.
    """
    with float32_products(rows) as rows:
        for start in range(0, len(total), BLOCK):
            block, columns = total[start : start + BLOCK, start:], rows[:, start:]
            if rows.device == total.device:
                block.addmm_(columns[:, :BLOCK].T, columns)
            else:
                block += (columns[:, :BLOCK].T @ columns).to(total.device)


def mirror(total: torch.Tensor) -> torch.Tensor:
    """Copy the blocks above the diagonal of a sum of `add_gram` to those below it, in place."""
    for start in range(0, len(total), BLOCK):
        total[start + BLOCK :, start : start + BLOCK] = total[start : start + BLOCK, start + BLOCK :].T
    return total


def output_norms(output: torch.Tensor) -> torch.Tensor:
    """Return the norm of a projection's output for every token, float32, shape `[tokens, 1]`."""
    norms = output.detach().flatten(0, -2).float().norm(dim=-1, keepdim=True)
    # Weights of tokens without an output stay finite. Compared on the device: a transfer would synchronize.
    smallest = 1e-6 * norms.max()
    return torch.maximum(norms, torch.where(smallest > 0, smallest, 1.0))


def ordering_bytes(width: int) -> int:
    """Return the bytes of the Gram matrices of a layer, and of ordering and factoring its widest unit."""
    return (8 + ALGEBRA_BYTES) * width**2


def matrix_device(layerwise: LayerwiseModel, units: Sequence[ModelUnit]) -> torch.device:
    """Return the device for matrices of all units: the model's if two sets of ridge factors fit, otherwise the CPU."""
    device = layerwise.device
    needed, free = sum(4 * unit.projection.in_features**2 for unit in units), free_device_memory(device)
    fits = not layerwise.weights.offloaded and free is not None and free > 2 * needed
    return device if fits else torch.device("cpu")


def collect_statistics(run: Callable[[], Any], units: Sequence[ModelUnit], relative: bool = False) -> list[Statistics]:
    """Collect the statistics of the units of one layer, on its device.

    Args:
        run: Runs the layer of the dense model on all tokens of this process, in one or several forward passes.
        units: The units of the layer.
        relative: Whether the input of every token is divided by the norm of the projection's output.

    Raises:
        FFPError: If the input of a unit's output projection is not finite.
    """
    collected = []
    with ExitStack() as hooks:
        for unit in units:
            features, device = unit.projection.in_features, unit.projection.weight.device
            sums = Statistics(torch.zeros(features, features, device=device), torch.zeros(features, device=device))
            hooks.enter_context(unit.projection.register_forward_hook(partial(_add, sums, relative)))
            collected.append(sums)
        run()
    for unit, sums in zip(units, collected):
        tokens = processes.sum_(torch.tensor(sums.tokens))
        mirror(processes.sum_(sums.gram)).div_(tokens)
        processes.sum_(sums.mean).div_(tokens)
        check_finite(sums.gram.diagonal(), f"the input of the output projection of {unit.unit.name}")
    return collected


def _add(
    sums: Statistics, relative: bool, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    """Add the input tokens of a projection to the sums, by a forward hook."""
    flat = inputs[0].detach().flatten(0, -2)
    if relative:
        flat = (flat / output_norms(output)).to(flat.dtype)
    add_gram(sums.gram, flat)
    sums.mean += flat.sum(0, dtype=torch.float32)
    sums.tokens += len(flat)

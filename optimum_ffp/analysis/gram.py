"""Gram matrices of the inputs of output projections, layer by layer over the calibration windows."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from ..engine import LayerRunner, LayerwiseModel
from ..modeling.families import ModelUnit
from ..modeling.families.base import permute_blocks
from ..utils.cholesky import check_finite
from ..utils.precision import float32_products


@dataclass
class Statistics:
    """Statistics of the input `X` (tokens x features) of one unit's output projection.

    Attributes:
        gram: `H = XᵀX / n`, float32, shape `[features, features]`. Where a norm follows the projection, rows of `X`
            are divided by the norm of the projection's output.
        mean: Mean of every feature, float32, shape `[features]`.
        tokens: Number of tokens, `n`.
    """

    gram: torch.Tensor
    mean: torch.Tensor
    tokens: int = 0

    @property
    def variance(self) -> torch.Tensor:
        """Variance of every feature over all tokens, shape `[features]`."""
        return (self.gram.diagonal() - self.mean**2).clamp_min(0)

    def to(self, device: torch.device) -> "Statistics":
        """Return the statistics on a device."""
        return Statistics(self.gram.to(device), self.mean.to(device), self.tokens)

    def permuted(self, order: torch.Tensor, block: int) -> "Statistics":
        """Return the statistics with groups of `block` features each reordered; `order` has shape `[groups]`."""
        gram = permute_blocks(permute_blocks(self.gram, 0, block, order), 1, block, order)
        return Statistics(gram, permute_blocks(self.mean, 0, block, order), self.tokens)


def describe_shortage(features: Sequence[int], tokens: int) -> str | None:
    """Return a warning if there are too few calibration tokens for Gram matrices of full rank, otherwise `None`.

    Args:
        features: Number of columns of every unit's output projection.
        tokens: Number of calibration tokens.
    """
    short = [count for count in features if count > tokens]
    if not short:
        return None
    return (
        f"{len(short)} of {len(features)} units have more channels (up to {max(short):,}) than there are calibration "
        f"tokens ({tokens:,}), too few to tell them apart; use more text, or raise num_samples or seq_len"
    )


def add_gram(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add `rowsᵀ rows` to `total` in float32, regardless of autocast.

    Args:
        total: Float32, shape `[features, features]`; may be on another device than the rows.
        rows: Shape `[..., features]`.
    """
    with float32_products(rows.detach().flatten(0, -2)) as (flat,):
        if flat.device == total.device:
            total.addmm_(flat.T, flat)
        else:
            total += (flat.T @ flat).to(total.device)


def output_norms(output: torch.Tensor) -> torch.Tensor:
    """Return the norm of a projection's output for every token, float32, shape `[tokens, 1]`.

    Norms are at least a millionth of the largest, so that tokens without an output have finite weights.
    """
    norms = output.detach().flatten(0, -2).float().norm(dim=-1, keepdim=True)
    return norms.clamp_min(1e-6 * float(norms.max()) or 1.0)


def matrix_device(layerwise: LayerwiseModel, units: Sequence[ModelUnit]) -> torch.device:
    """Return the device of all ridge factors: the model's if two sets of them fit, otherwise host memory."""
    device = layerwise.device
    if device.type != "cuda" or not layerwise.weights.resident:
        return torch.device("cpu")
    needed = sum(4 * unit.output.module.in_features**2 for unit in units)
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > 2 * needed else torch.device("cpu")


class _Accumulator:
    """Sums over the tokens that a projection reads. Memory is one matrix, independent of the number of windows."""

    def __init__(self, module: nn.Linear, relative: bool):
        self.relative, device = relative, module.weight.device
        self.gram = torch.zeros(module.in_features, module.in_features, device=device)
        self.total = torch.zeros(module.in_features, device=device)
        self.tokens = 0

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        flat = inputs[0].detach().flatten(0, -2)
        if self.relative:
            flat = (flat / output_norms(output)).to(flat.dtype)
        add_gram(self.gram, flat)
        self.total += flat.sum(0, dtype=torch.float32)
        self.tokens += len(flat)

    def finish(self) -> Statistics:
        return Statistics(self.gram.div_(self.tokens), self.total.div_(self.tokens), self.tokens)


def collect_statistics(
    runner: LayerRunner,
    units: Sequence[ModelUnit],
    states: torch.Tensor,
    batch_size: int = 1,
    relative: bool = False,
) -> list[Statistics]:
    """Collect the statistics of the units of one layer, and replace the hidden states before it by those after it.

    Args:
        runner: Runs the layer of the dense model.
        units: The units of the layer.
        states: Hidden states of the calibration windows, shape `[windows, window length, hidden size]`.
        batch_size: Windows per forward pass.
        relative: Whether the input of every token is divided by the norm of the projection's output.

    Returns:
        One `Statistics` per unit, in the order of `units`, on the layer's device. Sums are float32.

    Raises:
        FFPError: If the input of a unit's output projection is not finite.
    """
    accumulators = [_Accumulator(unit.output.module, relative) for unit in units]
    with ExitStack() as stack:
        for unit, accumulator in zip(units, accumulators):
            stack.callback(unit.output.module.register_forward_hook(accumulator).remove)
        runner.advance(states, batch_size)
    statistics = [accumulator.finish() for accumulator in accumulators]
    for unit, found in zip(units, statistics):
        check_finite(found.gram.diagonal(), f"the input of the output projection of {unit.unit.name}")
    return statistics

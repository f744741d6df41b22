"""Gram matrices of the inputs of all output projections, from one pass over the calibration windows."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.families import ModelUnit
from ..modeling.families.base import permute_blocks
from ..utils.cholesky import check_finite
from ..utils.precision import computing_in, float32_products
from ..utils.progress import progress_bar


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

    def permuted(self, order: torch.Tensor, block: int) -> "Statistics":
        """Return the statistics with groups of `block` features each reordered; `order` has shape `[groups]`."""
        gram = permute_blocks(permute_blocks(self.gram, 0, block, order), 1, block, order)
        return Statistics(gram, permute_blocks(self.mean, 0, block, order), self.tokens)


def pack(statistics: Sequence[Statistics]) -> dict[str, torch.Tensor]:
    """Return the statistics of all units as named tensors."""
    packed = {f"{i}.{name}": getattr(one, name) for i, one in enumerate(statistics) for name in ("gram", "mean")}
    return packed | {"tokens": torch.tensor([one.tokens for one in statistics])}


def unpack(tensors: dict[str, torch.Tensor], device: torch.device) -> list[Statistics]:
    """Return the statistics from the tensors of `pack`, on the given device."""
    return [
        Statistics(tensors[f"{i}.gram"].to(device), tensors[f"{i}.mean"].to(device), tokens)
        for i, tokens in enumerate(tensors["tokens"].tolist())
    ]


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


class _Accumulator:
    # Streaming: memory is one matrix per unit, independent of the number of windows.
    def __init__(self, features: int, device: torch.device, relative: bool):
        self.relative = relative
        self.gram = torch.zeros(features, features, device=device)
        self.total = torch.zeros(features, device=device)
        self.tokens = 0

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        flat = inputs[0].detach().flatten(0, -2)
        if self.relative:
            flat = (flat / output_norms(output)).to(flat.dtype)
        add_gram(self.gram, flat)
        self.total += flat.sum(0, dtype=torch.float32).to(self.total.device)
        self.tokens += len(flat)

    def finish(self) -> Statistics:
        return Statistics(self.gram.div_(self.tokens), self.total.div_(self.tokens), self.tokens)


def matrix_device(model: PreTrainedModel, units: Sequence[ModelUnit]) -> torch.device:
    """Return the device of the Gram matrices: the model's if two sets of them fit, otherwise host memory."""
    if model.device.type != "cuda":
        return torch.device("cpu")
    needed = sum(4 * unit.output.module.in_features**2 for unit in units)
    free, _ = torch.cuda.mem_get_info(model.device)
    return model.device if free > 2 * needed else torch.device("cpu")


@torch.no_grad()
def collect_statistics(
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    windows: torch.Tensor,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    relative: bool = False,
) -> list[Statistics]:
    """Collect the statistics of all units in one pass of the dense model over the calibration windows.

    Args:
        model: The dense model.
        units: The units of the model.
        windows: Token ids, shape `[windows, window length]`.
        batch_size: Windows per forward pass.
        device: Device of the matrices. In host memory, the accelerator holds the product of one unit at a time.
        dtype: Autocast dtype; `None` for the model's own. Sums are float32 either way.
        relative: Whether the input of every token is divided by the norm of the projection's output.

    Returns:
        One `Statistics` per unit, in the order of `units`.

    Raises:
        FFPError: If the input of a unit's output projection is not finite.
    """
    accumulators = [_Accumulator(unit.output.module.in_features, torch.device(device), relative) for unit in units]
    with ExitStack() as stack:
        for unit, accumulator in zip(units, accumulators):
            stack.callback(unit.output.module.register_forward_hook(accumulator).remove)
        stack.enter_context(computing_in(model.device, dtype))
        with progress_bar(len(windows), "Statistics", "window") as bar:
            for batch in windows.split(batch_size):
                model.base_model(batch.to(model.device), use_cache=False)
                bar.update(len(batch))
    statistics = [accumulator.finish() for accumulator in accumulators]
    for unit, found in zip(units, statistics):
        check_finite(found.gram.diagonal(), f"the input of the output projection of {unit.unit.name}")
    return statistics

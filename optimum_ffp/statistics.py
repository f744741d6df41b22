"""Gram matrices of what every output projection reads, from one pass over the calibration windows."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from .families import ModelUnit
from .families.base import permute_blocks
from .progress import progress_bar


@dataclass
class Statistics:
    """Statistics of the input `X` (tokens x features) of one unit's output projection.

    Attributes:
        gram: `H = XᵀX / n`, float32, shape `[features, features]`.
        mean: Mean of every feature, float32, shape `[features]`.
        tokens: Number of tokens seen, `n`.
    """

    gram: torch.Tensor
    mean: torch.Tensor
    tokens: int = 0

    @property
    def variance(self) -> torch.Tensor:
        """Variance of every feature over all tokens, shape `[features]`."""
        return (self.gram.diagonal() - self.mean**2).clamp_min(0)

    def permuted(self, order: torch.Tensor, block: int) -> "Statistics":
        """The same statistics with items of `block` features each reordered; `order` has shape `[items]`."""
        gram = permute_blocks(permute_blocks(self.gram, 0, block, order), 1, block, order)
        return Statistics(gram, permute_blocks(self.mean, 0, block, order), self.tokens)


class _Accumulator:
    # Streams: memory is one matrix a unit, however many windows are read.
    def __init__(self, features: int, device: torch.device):
        self.gram = torch.zeros(features, features, device=device)
        self.total = torch.zeros(features, device=device)
        self.tokens = 0

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        flat = inputs[0].detach().flatten(0, -2).float()
        if flat.device == self.gram.device:
            self.gram.addmm_(flat.T, flat)
        else:
            self.gram += (flat.T @ flat).to(self.gram.device)
        self.total += flat.sum(0).to(self.total.device)
        self.tokens += flat.shape[0]

    def finish(self) -> Statistics:
        return Statistics(self.gram.div_(self.tokens), self.total.div_(self.tokens), self.tokens)


@torch.no_grad()
def collect_statistics(
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    windows: torch.Tensor,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
) -> list[Statistics]:
    """Runs the dense model over the calibration windows and gathers the statistics of all units in one pass.

    Args:
        model: The dense model.
        units: Its units.
        windows: Token ids, shape `[windows, window length]`.
        batch_size: Windows a forward pass.
        device: Where the matrices live. Off the accelerator they cost it no memory but one unit's at a time.

    Returns:
        One `Statistics` a unit, in the order of `units`.
    """
    accumulators = [_Accumulator(unit.output.module.in_features, torch.device(device)) for unit in units]
    with ExitStack() as hooks:
        for unit, accumulator in zip(units, accumulators):
            hooks.callback(unit.output.module.register_forward_pre_hook(accumulator).remove)
        with progress_bar(len(windows), "Statistics", "window") as bar:
            for batch in windows.split(batch_size):
                model.base_model(batch.to(model.device), use_cache=False)
                bar.update(len(batch))
    return [accumulator.finish() for accumulator in accumulators]

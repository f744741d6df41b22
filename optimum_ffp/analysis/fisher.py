"""Fisher matrices at the outputs of all units, and loss curves derived from them."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..compression.ridge import PrefixRidge
from ..modeling.families import ModelUnit
from ..utils.cholesky import check_finite
from ..utils.progress import progress_bar
from .backward import backward_passes
from .gram import add_gram, output_norms


def collect_fisher(
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    layers: Iterable[nn.Module],
    windows: torch.Tensor,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    relative: bool = False,
) -> list[torch.Tensor]:
    """Collect Fisher matrices `G = E[g gᵀ]` of the loss gradient `g` at the output of every output projection.

    Labels are sampled from the model, so that the expectation is the curvature of the loss at the dense model. One
    backward pass per window gives the matrices of all units.

    Args:
        model: The dense model.
        units: The units of the model.
        layers: The decoder layers of the model, which are recomputed in the backward pass.
        windows: Token ids, shape `[windows, window length]`.
        seed: Random seed of the labels.
        dtype: Autocast dtype; `None` for the model's own.
        relative: Whether the gradient of every token is multiplied by the norm of the projection's output.

    Returns:
        One float32 matrix per unit, shape `[out_features, out_features]`, in nats per token.

    Raises:
        FFPError: If the gradient at a unit's output is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(unit.output.module.out_features, unit.output.module.out_features) for unit in units]

    def watch(total: torch.Tensor):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            norms = output_norms(output) if relative else None
            output.register_hook(partial(_add_gradient, total, norms))

        return hook

    watchers = {unit.output.module: watch(total) for unit, total in zip(units, totals)}
    with progress_bar(len(windows), "Fisher matrices", "window") as bar:
        for _ in backward_passes(model, layers, windows, watchers, partial(_sample, generator), dtype):
            bar.update()
    for unit, total in zip(units, totals):
        check_finite(total.diagonal(), f"the gradient of the loss at the output of {unit.unit.name}")
    return [total / windows.numel() for total in totals]


def _add_gradient(total: torch.Tensor, norms: torch.Tensor | None, gradient: torch.Tensor) -> None:
    rows = gradient.detach().flatten(0, -2)
    add_gram(total, rows if norms is None else rows.float() * norms)


def _sample(generator: torch.Generator, window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    # Inverse transform sampling: one random number per token, where multinomial draws one per vocabulary entry.
    cumulative = probabilities.cumsum(-1)
    chosen = torch.rand(len(probabilities), 1, generator=generator).to(cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, chosen, right=True).clamp_max(probabilities.shape[-1] - 1)[:, 0]


def loss_curve(ridge: PrefixRidge, fisher: torch.Tensor | None, block: int) -> np.ndarray:
    """Return the increase of the loss for every number `k` of kept groups of a unit, after ridge regression.

    With `H + λI = L Lᵀ` in the sorted order and `V = W L`, the output error after calibration is `Σ_{j≥k} ‖V_j‖²` in
    the metric of `H + λI`. Weighted by the Fisher matrix, `½ Σ_{j≥k} V_jᵀ G V_j` is the loss to second order.

    Args:
        ridge: Weight and ridge factor of the unit.
        fisher: `G`, shape `[out_features, out_features]`; `None` for the unweighted output error.
        block: Number of columns per group.

    Returns:
        Nats per token (or squared output error per token), float64, shape `[groups + 1]`, non-increasing to 0.
    """
    rotated = ridge.weight.float() @ ridge.factor.to(ridge.weight.device)
    losses = (
        rotated.square().sum(0) if fisher is None else (rotated * (fisher.to(rotated.device) @ rotated)).sum(0) / 2
    )
    per_group = losses.view(-1, block).sum(1).double().cpu().numpy()
    return np.append(np.cumsum(per_group[::-1])[::-1], 0.0)

"""Fisher matrices at the outputs of all units, and loss curves derived from them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from ..compression.ridge import PrefixRidge
from ..engine import LayerwiseModel, backward_passes
from ..modeling.families import ModelUnit, units_of_layer
from ..utils import processes
from ..utils.cholesky import check_finite
from ..utils.seeds import seed_of
from .gram import add_gram, matrix_device, mirror, output_norms


def collect_fisher(
    layerwise: LayerwiseModel,
    units: Sequence[ModelUnit],
    windows: torch.Tensor,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    relative: bool = False,
    keep: Callable[[int, torch.Tensor], torch.Tensor] = lambda index, matrix: matrix,
) -> list[torch.Tensor]:
    """Collect Fisher matrices `G = E[g gᵀ]` of the loss gradient `g` at the output of every output projection.

    Labels are sampled from the model, so that the expectation is the curvature of the loss at the dense model. One
    backward pass per window gives the matrices of all units; processes share the windows.

    Args:
        layerwise: The dense model.
        units: The units of the model.
        windows: Token ids, shape `[windows, window length]`.
        seed: Random seed of the labels; every window has a generator of its own.
        dtype: Autocast dtype; `None` for the model's own.
        relative: Whether the gradient of every token is multiplied by the norm of the projection's output.
        keep: Called with the index and the finished matrix of every unit; its result is returned for that unit.

    Returns:
        One float32 matrix per unit in host memory, shape `[out_features, out_features]`, in nats per token.

    Raises:
        FFPError: If the gradient at a unit's output is not finite.
    """
    share, device = processes.share(len(windows)), matrix_device(layerwise, units)
    # All output projections have as many outputs as the hidden states have entries.
    features = units[0].projection.out_features
    sums = defaultdict[int, torch.Tensor](lambda: torch.zeros(features, features, device=device))
    matrices: dict[int, torch.Tensor] = {}

    def watchers(layer: int) -> dict[nn.Module, Callable[..., None]]:
        members = units_of_layer(units, layer)
        return {units[index].output.module: partial(_watch, sums[index], relative) for index in members}

    def finish(layer: int) -> None:
        for index in units_of_layer(units, layer):
            matrix = mirror(processes.sum_(sums[index])).div_(windows.numel())
            del sums[index]
            check_finite(matrix.diagonal(), f"the gradient of the loss at the output of {units[index].unit.name}")
            matrices[index] = keep(index, matrix.cpu())

    backward_passes(
        layerwise,
        windows[share],
        watchers=watchers,
        labels_of=LabelSampler(seed, share.start),
        dtype=dtype,
        on_layer=finish,
        description="Fisher matrices",
    )
    return [matrices[index] for index in range(len(units))]


def _watch(
    total: torch.Tensor, relative: bool, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> None:
    """Add `Σ g gᵀ` of a window to the total, by a forward hook."""
    norms = output_norms(output) if relative else None

    def on_gradient(gradient: torch.Tensor) -> None:
        rows = gradient.detach().flatten(0, -2)
        add_gram(total, rows if norms is None else rows.float() * norms)

    output.register_hook(on_gradient)


class LabelSampler:
    """Samples labels from the model, for windows in order from the index `window`."""

    def __init__(self, seed: int, window: int):
        self._seed, self._window = seed, window

    def __call__(self, window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
        """Return labels of a piece of a window, as `Labels` of the engine."""
        if start == 0:
            self._generator = torch.Generator().manual_seed(seed_of(self._seed, self._window))
            self._window += 1
        # Inverse transform sampling: one random number per token, where multinomial draws one per vocabulary entry.
        cumulative = probabilities.cumsum(-1)
        chosen = torch.rand(len(probabilities), 1, generator=self._generator).to(cumulative.device)
        labels = torch.searchsorted(cumulative, chosen * cumulative[:, -1:], right=True)
        return labels.clamp_max(probabilities.shape[-1] - 1)[:, 0]


def loss_curve(weight: torch.Tensor, ridge: PrefixRidge, fisher: torch.Tensor, block: int) -> np.ndarray:
    """Return the increase of the loss for every number `k` of kept groups of a unit, after ridge regression.

    With `H + λI = L Lᵀ` in the sorted order and `V = W L`, the output error after calibration is `Σ_{j≥k} ‖V_j‖²` in
    the metric of `H + λI`. Weighted by the Fisher matrix, `½ Σ_{j≥k} V_jᵀ G V_j` is the loss to second order.

    Args:
        weight: `W`, the output projection in the sorted order, shape `[out_features, features]`.
        ridge: `L`.
        fisher: `G`, shape `[out_features, out_features]`.
        block: Number of columns per group.

    Returns:
        Nats per token, float64, shape `[groups + 1]`, non-increasing to 0.
    """
    rotated = weight.float() @ ridge.factor.to(weight.device)
    losses = (rotated * (fisher.to(rotated.device) @ rotated)).sum(0) / 2
    per_group = losses.view(-1, block).sum(1).cpu().double().numpy()
    return np.append(np.cumsum(per_group[::-1])[::-1], 0.0)

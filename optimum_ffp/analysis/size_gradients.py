"""Gradients of the loss with respect to the sizes of all units, from one backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from ..allocation.policy import PruningPolicy
from ..compression.sorted_model import SortedModel
from ..engine import UNKNOWN, backward_passes
from ..utils import processes


@dataclass(frozen=True)
class SizeGradients:
    """Losses of a policy, and their first-order changes when one unit at a time changes to a neighboring size.

    Attributes:
        losses: Nats per token, shape `[windows]`.
        down: Changes for the sizes in the smaller of `policy.neighbors()`, shape `[windows, units]`.
        up: Changes for those in the larger one, shape `[windows, units]`.
    """

    losses: np.ndarray
    down: np.ndarray
    up: np.ndarray


def measure_size_gradients(
    sorted_model: SortedModel, policy: PruningPolicy, windows: torch.Tensor, dtype: torch.dtype | None = None
) -> SizeGradients:
    """Measure the size gradients of all units with one forward and one backward pass per window.

    The output of a compensated unit is `Σ_{j<k} V_j z_j` for every size `k` (see `PrefixRidge.components`). The model
    runs with the inputs of the larger neighbor; the policy's output weights are padded with zeros, so that the
    additional columns have no effect. With the loss gradient `g` at the output, adding the columns `k` to `l` changes
    the loss by `Σ_tokens Σ_{k≤j<l} (g·V_j) z_j`. Removing columns before `k` changes it by the negative of the same
    sum over the removed columns.

    Windows are token ids, shape `[windows, window length]`; processes share them. The dtype is that of autocast.
    """
    share = windows[processes.share(len(windows))]
    down, up = policy.neighbors()
    # By unit and window. Kept on the device: every transfer to the host would synchronize.
    changes: list[list[torch.Tensor]] = [[] for _ in policy.units]

    def kept_members(layer: int) -> list[int]:
        return [index for index in sorted_model.members(layer) if policy.sizes[index]]

    def padded_output(index: int) -> tuple[str, torch.Tensor]:
        missing = (up.sizes[index] - policy.sizes[index]) * sorted_model.model_units[index].output.block
        weight = sorted_model.compensated_output(index, policy.sizes[index])
        return sorted_model.named_output(index, nn.functional.pad(weight, (0, missing)))

    def change(layer: int) -> AbstractContextManager[None]:
        return sorted_model.change(up, dict(map(padded_output, kept_members(layer))))(layer)

    def watchers(layer: int) -> dict[nn.Module, Callable[..., None]]:
        hooks, component_dtype = {}, _component_dtype(sorted_model.layerwise.dtype)
        for index in kept_members(layer):
            unit = sorted_model.model_units[index]
            low, current, high = (one.sizes[index] * unit.output.block for one in (down, policy, up))
            directions, mixing = sorted_model.ridges[index].components(sorted_model.dense_output(index), low, high)
            components = directions.to(component_dtype), unit.in_layout(mixing.T).T.to(component_dtype)
            hooks[unit.output.module] = partial(_watch, *components, current - low, changes[index])
        return hooks

    losses = backward_passes(
        sorted_model.layerwise, share, watchers=watchers, labels_of=_next_tokens, change=change, dtype=dtype
    )
    units = len(policy.units)
    # Zero for removed units.
    gradients = torch.zeros(units, len(losses), 2, dtype=torch.float64)
    for row, unit_changes in zip(gradients, changes):
        if unit_changes:
            # In two steps: some devices don't support float64.
            row.copy_(torch.stack(unit_changes).cpu())
    rows = torch.cat([torch.tensor(losses, dtype=torch.float64)[:, None], *gradients.permute(2, 1, 0)], 1)
    per_token = processes.gather(rows).numpy() / (windows.shape[1] - 1)
    return SizeGradients(per_token[:, 0], per_token[:, 1 : 1 + units], per_token[:, 1 + units :])


def _watch(
    directions: torch.Tensor,
    mixing: torch.Tensor,
    kept: int,
    changes: list[torch.Tensor],
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> None:
    """Measure the changes of the loss by `PrefixRidge.components` of a unit, `kept` of which the policy keeps."""
    rows = inputs[0].detach().flatten(0, -2)
    rows = rows.to(_component_dtype(rows.dtype))
    components = rows @ mixing.to(rows.dtype)

    def on_gradient(gradient: torch.Tensor) -> None:
        gradient = gradient.flatten(0, -2).to(_component_dtype(gradient.dtype))
        projected = gradient @ directions.to(gradient.dtype)
        totals = (projected.float() * components.float()).sum(0)
        changes.append(torch.stack([-totals[:kept].sum(), totals[kept:].sum()]))

    output.register_hook(on_gradient)


def _component_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype for components: those of units with small inputs are too large for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _next_tokens(window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    labels = window[start + 1 : start + 1 + len(probabilities)]
    return nn.functional.pad(labels, (0, len(probabilities) - len(labels)), value=UNKNOWN)

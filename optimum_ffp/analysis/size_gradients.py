"""Gradients of the loss with respect to the sizes of all units, from one backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
        down: Change for the unit's size in the smaller of `policy.neighbors()`, shape `[windows, units]`.
        up: Change for the unit's size in the larger of `policy.neighbors()`, shape `[windows, units]`.
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

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: The policy to measure at.
        windows: Token ids, shape `[windows, window length]`. Processes share them.
        dtype: Autocast dtype; `None` for the model's own.
    """
    share = windows[processes.share(len(windows))]
    down, up = policy.neighbors()
    # By unit and window. Kept on the device: every transfer to the host would synchronize.
    changes: list[list[torch.Tensor]] = [[] for _ in policy.units]

    def kept_members(layer: int) -> list[int]:
        return [index for index in sorted_model.members(layer) if policy.sizes[index]]

    @contextmanager
    def change(layer: int) -> Iterator[None]:
        weights = {}
        for index in kept_members(layer):
            missing = (up.sizes[index] - policy.sizes[index]) * sorted_model.model_units[index].output.block
            weight = sorted_model.compensated_output(index, policy.sizes[index])
            weights |= [sorted_model.named_output(index, nn.functional.pad(weight, (0, missing)))]
        with sorted_model.change(up, weights)(layer):
            yield

    def watchers(layer: int) -> dict[nn.Module, Callable[..., None]]:
        hooks = {}
        for index in kept_members(layer):
            unit = sorted_model.model_units[index]
            low, current, high = (one.sizes[index] * unit.output.block for one in (down, policy, up))
            directions, mixing = sorted_model.ridges[index].components(sorted_model.dense_output(index), low, high)
            component_dtype = _component_dtype(sorted_model.layerwise.dtype)
            directions, mixing = directions.to(component_dtype), unit.in_layout(mixing.T).T.to(component_dtype)
            hooks[unit.output.module] = _Probe(directions, mixing, kept=current - low, changes=changes[index]).watch
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


@dataclass
class _Probe:
    """Measures the changes of the loss by `PrefixRidge.components` of one unit, of which the policy keeps `kept`."""

    directions: torch.Tensor
    mixing: torch.Tensor
    kept: int
    changes: list[torch.Tensor]

    def watch(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        rows = rows.to(_component_dtype(rows.dtype))
        components = rows @ self.mixing.to(rows.dtype)

        def on_gradient(gradient: torch.Tensor) -> None:
            gradient = gradient.flatten(0, -2).to(_component_dtype(gradient.dtype))
            projected = gradient @ self.directions.to(gradient.dtype)
            totals = (projected.float() * components.float()).sum(0)
            self.changes.append(torch.stack([-totals[: self.kept].sum(), totals[self.kept :].sum()]))

        output.register_hook(on_gradient)


def _component_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype for components: those of units with small inputs are too large for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _next_tokens(window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    labels = window[start + 1 : start + 1 + len(probabilities)]
    return nn.functional.pad(labels, (0, len(probabilities) - len(labels)), value=UNKNOWN)

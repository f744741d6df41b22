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
    # By unit and window; they stay on the device, which would wait for every transfer.
    changes: list[list[torch.Tensor]] = [[] for _ in policy.units]

    @contextmanager
    def change(layer: int) -> Iterator[None]:
        weights = {}
        for index in sorted_model.members(layer):
            missing = (up.sizes[index] - policy.sizes[index]) * sorted_model.model_units[index].output.block
            weight = sorted_model.compensated_output(index, policy.sizes[index])
            weights |= [sorted_model.named_output(index, nn.functional.pad(weight, (0, missing)))]
        with sorted_model.change(up, weights)(layer):
            yield

    def watchers(layer: int) -> dict[nn.Module, Callable[..., None]]:
        found = {}
        for index in sorted_model.members(layer):
            unit = sorted_model.model_units[index]
            low, kept, high = (one.sizes[index] * unit.output.block for one in (down, policy, up))
            directions, mixing = sorted_model.ridges[index].components(sorted_model.dense_output(index), low, high)
            mixing, own = unit.in_layout(mixing.T).T, _wide(sorted_model.layerwise.dtype)
            probe = _Probe(directions.to(own), mixing.to(own), kept - low, changes[index])
            found[unit.output.module] = probe.watch
        return found

    losses = backward_passes(sorted_model.layerwise, share, watchers, _next_tokens, change, dtype)
    units = len(policy.units)
    of_units = torch.empty(units, len(losses), 2, dtype=torch.float64)
    for found, of_unit in zip(of_units, changes):
        if of_unit:
            # In two steps: some devices have no float64.
            found.copy_(torch.stack(of_unit).cpu())
    rows = torch.cat([torch.tensor(losses, dtype=torch.float64)[:, None], *of_units.permute(2, 1, 0)], 1)
    found = processes.gather(rows).numpy() / (windows.shape[1] - 1)
    return SizeGradients(found[:, 0], found[:, 1 : 1 + units], found[:, 1 + units :])


@dataclass
class _Probe:
    """Measures the contribution to the loss of one unit's output components between two sizes.

    Attributes:
        directions, mixing: The components, as `PrefixRidge.components` returns them.
        kept: Number of components that the policy has.
        changes: Changes of the loss of every window, to the smaller and to the larger size.
    """

    directions: torch.Tensor
    mixing: torch.Tensor
    kept: int
    changes: list[torch.Tensor]

    def watch(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found = inputs[0].detach().flatten(0, -2)
        found = found.to(_wide(found.dtype))
        components = found @ self.mixing.to(found.dtype)

        def follow(gradient: torch.Tensor) -> None:
            gradient = gradient.flatten(0, -2).to(_wide(gradient.dtype))
            felt = gradient @ self.directions.to(gradient.dtype)
            totals = (felt.float() * components.float()).sum(0)
            self.changes.append(torch.stack([-totals[: self.kept].sum(), totals[self.kept :].sum()]))

        output.register_hook(follow)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype for components: those of units with small inputs are too large for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _next_tokens(window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    labels = window[start + 1 : start + 1 + len(probabilities)]
    return nn.functional.pad(labels, (0, len(probabilities) - len(labels)), value=UNKNOWN)

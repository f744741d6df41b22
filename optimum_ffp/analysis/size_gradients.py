"""Gradients of the loss with respect to the sizes of all units, from one backward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..allocation.policy import PruningPolicy
from ..compression.sorted_model import SortedModel
from .backward import UNKNOWN, backward_passes


@dataclass(frozen=True)
class SizeGradients:
    """Losses of a policy, and their first-order changes when one unit at a time changes to a neighbouring size.

    Attributes:
        losses: Nats per token, shape `[windows]`.
        down: Change for the unit's size in the smaller of `policy.neighbours()`, shape `[windows, units]`.
        up: Change for the unit's size in the larger of `policy.neighbours()`, shape `[windows, units]`.
    """

    losses: np.ndarray
    down: np.ndarray
    up: np.ndarray


def measure_size_gradients(
    sorted_model: SortedModel, policy: PruningPolicy, windows: torch.Tensor, dtype: torch.dtype | None = None
) -> SizeGradients:
    """Measure the size gradients of all units with one forward and one backward pass per window.

    The output of a compensated unit is `Σ_{j<k} V_j z_j` for every size `k` (see `PrefixRidge.components`). The model
    runs with the inputs of the larger neighbour; the policy's output weights are padded with zeros, so that the
    additional columns have no effect. With the loss gradient `g` at the output, adding the columns `k` to `l` changes
    the loss by `Σ_tokens Σ_{k≤j<l} (g·V_j) z_j`. Removing columns before `k` changes it by the negative of the same
    sum over the removed columns.

    Args:
        sorted_model: The sorted model, with its ridge factors.
        policy: The policy to measure at.
        windows: Token ids, shape `[windows, window length]`.
        dtype: Autocast dtype; `None` for the model's own.
    """
    down, up = policy.neighbours()
    changes = np.zeros((2, len(windows), len(policy.units)))
    losses = np.zeros(len(windows))
    probes, weights = [], {}
    for index, unit in enumerate(sorted_model.model_units):
        low, kept, high = (one.sizes[index] * unit.output.block for one in (down, policy, up))
        weight = sorted_model.compensated_output(index, policy.sizes[index])
        directions, mixing = sorted_model.ridges[index].components(low, high)
        probes.append(_Probe(directions, unit.in_layout(mixing.T).T, kept - low, weight.dtype))
        padded = nn.functional.pad(weight, (0, high - kept))
        weights |= [sorted_model.named_output(index, padded)]
    watchers = {unit.output.module: probe.watch for unit, probe in zip(sorted_model.model_units, probes)}
    layers = sorted_model.model.base_model.get_submodule(sorted_model.family.layers)
    with sorted_model.applied(up, weights) as model:
        for number, loss in enumerate(backward_passes(model, layers, windows, watchers, _next_tokens, dtype)):
            losses[number] = loss
            changes[:, number] = np.array([probe.finish() for probe in probes]).T
    tokens = windows.shape[1] - 1
    return SizeGradients(losses / tokens, *(changes / tokens))


class _Probe:
    """Measures the contribution to the loss of one unit's output components between two sizes."""

    def __init__(self, directions: torch.Tensor, mixing: torch.Tensor, kept: int, dtype: torch.dtype):
        self.directions, self.mixing, self.kept = directions.to(dtype), mixing.to(dtype), kept
        self.changes: tuple[float, float] | None = None
        self.watching = False

    def watch(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if self.watching:
            # The layer is recomputed in the backward pass.
            return
        self.watching = True
        found = inputs[0].detach().flatten(0, -2)
        components = found @ self.mixing.to(found.dtype)

        def follow(gradient: torch.Tensor) -> None:
            gradient = gradient.flatten(0, -2)
            felt = gradient @ self.directions.to(gradient.dtype)
            totals = (felt.float() * components.float()).sum(0)
            self.changes = -float(totals[: self.kept].sum()), float(totals[self.kept :].sum())

        output.register_hook(follow)

    def finish(self) -> tuple[float, float]:
        """Return the changes measured in the backward pass of the window."""
        self.watching = False
        return self.changes


def _next_tokens(window: torch.Tensor, probabilities: torch.Tensor, start: int) -> torch.Tensor:
    labels = window[start + 1 : start + 1 + len(probabilities)]
    return nn.functional.pad(labels, (0, len(probabilities) - len(labels)), value=UNKNOWN)

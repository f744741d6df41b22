"""Increase of the loss when the tokens of an expert are routed to others; experts are removed one by one."""

from collections.abc import Mapping

import torch
from torch import nn

from ...engine import LayerwiseModel, backward_passes
from ...modeling.families import ModelUnit
from ...plan import Plan
from ...utils import processes
from ...utils.precision import autocast_dtype, computing_in
from ..fisher import LabelSampler
from ..rerouting import PRODUCTS, TOKENS, remove_greedily


def score(
    layerwise: LayerwiseModel, units: Mapping[int, ModelUnit], plan: Plan, windows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the step at which every expert is removed, or the number of experts of its layer if it stays.

    One backward pass per window of the Fisher matrix gives its diagonal at the output of the experts, which weights
    the squared error of every channel. Then experts are removed one at a time: the one whose tokens, routed to the
    experts that the router prefers without it, add the least error. That needs the outputs of all experts, of a sample
    of the tokens.
    """
    windows, dtype = windows[: plan.fisher_samples], autocast_dtype(layerwise.model, plan.search_dtype)
    share = processes.share(len(windows))
    experts = max(unit.unit.groups for unit in units.values())
    stride, size = -(-windows.numel() // min(TOKENS, PRODUCTS // experts**2)), layerwise.model.config.hidden_size
    inputs = {layer: _Inputs(unit.unit.groups, size, stride) for layer, unit in units.items()}
    measured: dict[str, torch.Tensor] = {}

    def finish(layer: int) -> None:
        if layer not in units:
            return
        one = inputs.pop(layer)
        fisher = processes.sum_(one.squares) / windows.numel()
        with torch.no_grad(), computing_in(layerwise.device, dtype):
            scores, _ = remove_greedily(units[layer], torch.cat(one.hidden), fisher)
        measured.update({f"{layer}.scores": scores, f"{layer}.tokens": processes.sum_(one.tokens)})

    backward_passes(
        layerwise,
        windows[share],
        watchers=lambda layer: {units[layer].output.module: inputs[layer]} if layer in units else {},
        labels_of=LabelSampler(plan.seed, share.start),
        dtype=dtype,
        on_layer=finish,
        description="Experts",
    )
    return measured


class _Inputs:
    """A forward hook of all experts of a layer, which keeps a sample of the tokens that they get.

    Attributes:
        hidden: Every `stride`-th token of each forward pass, shape `[tokens, hidden size]`.
        squares: Sum of the squared gradients at the output, shape `[hidden size]`.
        tokens: Number of tokens of every expert, float64, shape `[experts]`.
    """

    def __init__(self, experts: int, hidden_size: int, stride: int):
        self.hidden, self.stride = [torch.empty(0, hidden_size)], stride
        self.squares, self.tokens = torch.zeros(hidden_size), torch.zeros(experts, dtype=torch.float64)

    def __call__(self, experts: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        hidden, index, _ = inputs
        self.hidden.append(hidden.detach()[:: self.stride].to("cpu", copy=True))
        self.tokens += index.flatten().cpu().bincount(minlength=len(self.tokens))
        output.register_hook(self._add_gradient)

    def _add_gradient(self, gradient: torch.Tensor) -> None:
        self.squares += gradient.float().square().sum(0).cpu()

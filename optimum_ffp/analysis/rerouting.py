"""Greedy removal of experts by the error that it causes, with the tokens of removed experts routed to others."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import linear

from ..engine import LayerwiseModel, backward_passes
from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.precision import computing_in
from .fisher import LabelSampler


# Number of tokens to route, and of products of experts' outputs to keep for them: a GiB.
TOKENS, PRODUCTS = 2**14, 2**28
# Number of tokens that pass through all experts at once.
BATCH = 64
# Logit of a removed expert. Infinity multiplied by 0 would not be finite.
REMOVED = -1e9


def removal_scores(
    layerwise: LayerwiseModel,
    units: Mapping[int, ModelUnit],
    windows: torch.Tensor,
    seed: int,
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """Return the scores of the experts of all layers by the loss that their removal causes.

    One backward pass per window gives the diagonal of the Fisher matrix at the output of the experts, which weights
    the squared error of every channel. Then experts are removed one at a time: the one whose tokens, routed to the
    experts that the router prefers without it, add the least error. That needs the outputs of all experts, of a sample
    of the tokens.

    Args:
        layerwise: The dense model.
        units: Its units by layer.
        windows: Token ids, shape `[windows, window length]`. Processes share them.
        seed: Random seed of the labels.
        dtype: Autocast dtype; `None` for the model's own.

    Returns:
        By layer, in float64: `scores`, the step at which every expert is removed, or their number if it stays;
        and `tokens`, the number of tokens that the dense model routes to every expert.
    """
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
        labels_of=LabelSampler(seed, share.start),
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


def remove_greedily(unit: ModelUnit, hidden: torch.Tensor, fisher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove the experts of a layer one at a time, until as many are left as the model needs.

    Where a router chooses among groups, all of them lose one expert before any loses another, and the search for the
    next one ignores the tokens whose groups change; losses count them.

    Args:
        unit: The experts, with their weights loaded.
        hidden: This process's inputs, shape `[tokens, hidden size]`.
        fisher: Weight of every channel's squared error, shape `[hidden size]`.

    Returns:
        Scores of shape `[experts]` and losses of shape `[removed experts]`, as for `removal_scores`.
    """
    (router, experts), count = unit.mixture, unit.unit.groups
    hidden = hidden.to(router.weight.device, experts.down_proj.dtype)
    scale = fisher.sqrt().to(hidden.device)
    total = float(processes.sum_(torch.tensor(float(len(hidden)))))
    products = torch.empty(len(hidden), count, count, device=hidden.device)
    for rows, batch in zip(products.split(BATCH), hidden.split(BATCH)):
        rows.copy_(_products(experts, batch, scale))
    with computing_in(hidden.device, None):
        logits = linear(hidden.float(), router.weight.float())
        # From logits to experts. A copy, whose weights may have another shape.
        router = copy.deepcopy(router)
        router.hidden_dim, router.weight = count, nn.Parameter(torch.eye(count, device=hidden.device))
        removed = torch.zeros(count, dtype=torch.bool, device=hidden.device)
        dense = routed = _route(router, logits, removed)
        errors, losses = torch.zeros(len(hidden), device=hidden.device), []
        scores = torch.full((count,), count, dtype=torch.float64)
        while count - len(losses) > unit.unit.required:
            left = (~removed).view(unit.sections, -1).sum(1, keepdim=True)
            candidates = ((left == left.max()) & ~removed.view(unit.sections, -1)).flatten().nonzero()[:, 0]
            changes = torch.zeros(len(candidates), dtype=torch.float64)
            for change, expert in zip(changes, candidates):
                rows = (routed[1] == expert).any(1).nonzero()[:, 0]
                without = removed.index_fill(0, expert, True)
                rerouted = _errors(products, dense, _route(router, logits[rows], without), rows)
                # Summed on the host: MPS has no float64.
                change += (rerouted - errors[rows]).cpu().double().sum()
            expert = int(candidates[processes.sum_(changes).argmin()])
            removed[expert] = True
            routed = _route(router, logits, removed)
            errors = _errors(products, dense, routed, torch.arange(len(hidden)))
            scores[expert] = len(losses)
            losses.append(float(processes.sum_(errors.cpu().double().sum())) / total / 2)
    return scores, torch.tensor(losses, dtype=torch.float64)


def _products(experts: Any, hidden: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the products of all experts' outputs, with channels scaled, shape `[tokens, experts, experts]`."""
    count = experts.num_experts
    index = torch.arange(count, device=hidden.device).repeat(len(hidden))[:, None]
    rows = hidden.repeat_interleave(count, 0)
    outputs = experts(rows, index, torch.ones_like(index, dtype=rows.dtype)).float() * scale
    outputs = outputs.unflatten(0, (len(hidden), count))
    with computing_in(hidden.device, None):
        return outputs @ outputs.mT


def _route(router: nn.Module, logits: torch.Tensor, removed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gates and experts of tokens, each of shape `[tokens, top k]`, without the removed experts.

    Args:
        router: A router with the identity as its weights.
        logits: Logits of all experts, float32, shape `[tokens, experts]`.
        removed: Whether an expert is removed, shape `[experts]`.
    """
    biases = {name: one.masked_fill(removed, -torch.inf) for name, one in router.named_buffers()}
    _, gates, index = functional_call(router, biases, (logits.masked_fill(removed, REMOVED),))
    return gates, index


def _errors(
    products: torch.Tensor,
    dense: tuple[torch.Tensor, torch.Tensor],
    routed: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
) -> torch.Tensor:
    """Return the squared error of tokens whose gates and experts change, shape `[rows]`."""
    gates = torch.cat([routed[0], -dense[0][rows]], 1)
    index = torch.cat([routed[1], dense[1][rows]], 1)
    chosen = products[rows[:, None, None], index[:, :, None], index[:, None]]
    return torch.einsum("ta,tab,tb->t", gates, chosen, gates)


def rerouting_bytes(experts: int) -> int:
    """Return the bytes of what is kept of a layer's tokens to remove its experts one by one."""
    return 4 * min(PRODUCTS, TOKENS * experts**2)

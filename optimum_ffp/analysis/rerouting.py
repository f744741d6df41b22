"""Greedy removal of experts by the error that it causes, with the tokens of removed experts routed to others."""

import copy
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import linear

from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.precision import computing_in


# Number of tokens to route, and of products of experts' outputs to keep for them: a GiB.
TOKENS, PRODUCTS = 2**14, 2**28
# Number of tokens that pass through all experts at once.
BATCH = 64
# Logit of a removed expert. Infinity multiplied by 0 would not be finite.
REMOVED = -1e9


def remove_greedily(unit: ModelUnit, hidden: torch.Tensor, fisher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove the experts of a layer one at a time, until as many are left as the model needs.

    Where a router chooses among groups, all of them lose one expert before any loses another, and the search for the
    next one ignores the tokens whose groups change; losses count them.

    Args:
        unit: The experts, with their weights loaded.
        hidden: This process's inputs, shape `[tokens, hidden size]`.
        fisher: Weight of every channel's squared error, shape `[hidden size]`.

    Returns:
        Scores, float64, shape `[experts]`: the step at which every expert is removed, or their number if it stays. And
        the loss after every step, float64, shape `[removed experts]`.
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
    """Return gates and experts of tokens, each `[tokens, top k]`, by a router with the identity as its weight."""
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

"""REAP: router-weighted expert activation pruning."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from ...engine import LayerwiseModel
from ...modeling.families import ModelUnit
from ...plan import Plan
from ...utils import processes
from ...utils.precision import autocast_dtype
from ...utils.progress import progress_bar


def score(
    layerwise: LayerwiseModel, units: Mapping[int, ModelUnit], plan: Plan, windows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the mean of an expert's output norm times its gate over the tokens that are routed to it."""
    dtype, measured = autocast_dtype(layerwise.model, plan.search_dtype), {}
    states, arguments = layerwise.embed(windows[processes.share(len(windows))])
    with progress_bar(len(layerwise.layers), "Experts", "layer") as bar:
        for index, layer in layerwise.iter_layers():
            runner = layerwise.runner(layer, arguments[index], dtype)
            if unit := units.get(index):
                totals = torch.zeros(2, unit.unit.groups, dtype=torch.float64)
                with unit.output.module.register_forward_pre_hook(partial(add_contributions, totals)):
                    runner.advance(states, plan.batch_size)
                sums, tokens = processes.sum_(totals)
                measured |= {f"{index}.scores": sums / tokens.clamp_min(1), f"{index}.tokens": tokens}
            else:
                runner.advance(states, plan.batch_size)
            bar.update()
    return measured


def add_contributions(
    totals: torch.Tensor, experts: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """Add what experts contribute to their tokens, and the number of these, to `totals`, shape `[2, experts]`.

    A contribution is the norm of the output times the gate, which is normalized over the experts of a token. Inputs of
    the forward pre-hook have shape `[tokens, hidden size]`, indices and gates `[tokens, top k]`.
    """
    hidden, index, gates = inputs
    # Each routed token alone, so that the outputs aren't summed; without the hook.
    routed, ones = hidden.repeat_interleave(index.shape[1], 0), torch.ones_like(gates).reshape(-1, 1)
    norms = experts.forward(routed, index.reshape(-1, 1), ones).float().norm(dim=-1)
    shares = (gates / gates.sum(-1, keepdim=True)).flatten()
    index = index.flatten().cpu()
    totals[0].index_add_(0, index, (shares * norms).cpu().double())
    totals[1] += index.bincount(minlength=totals.shape[1])

"""Order of the experts of a mixture, and how many tokens each of them gets."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..config import FFPConfig
from ..engine import LayerwiseModel
from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from .rerouting import removal_scores


def add_contributions(
    totals: torch.Tensor, experts: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """Add what experts contribute to their tokens: the norm of the output times the gate, by a forward pre-hook.

    Gates are normalized over the experts of a token. The mean over the tokens of an expert is its score in REAP
    (router-weighted expert activation pruning).

    Args:
        totals: Sum of the contributions and number of tokens of every expert, float64, shape `[2, experts]`.
        experts: The module with all experts of a layer.
        inputs: Its inputs of shape `[tokens, hidden size]`, and indices and gates of shape `[tokens, top k]`.
    """
    hidden, index, gates = inputs
    # Each routed token alone, so that the outputs aren't summed; without the hook.
    routed, ones = hidden.repeat_interleave(index.shape[1], 0), torch.ones_like(gates).reshape(-1, 1)
    norms = experts.forward(routed, index.reshape(-1, 1), ones).float().norm(dim=-1)
    shares = (gates / gates.sum(-1, keepdim=True)).flatten()
    index = index.flatten().cpu()
    totals[0].index_add_(0, index, (shares * norms).cpu().double())
    totals[1] += index.bincount(minlength=totals.shape[1])


def order_experts(
    layerwise: LayerwiseModel, units: Sequence[ModelUnit], config: FFPConfig, windows: torch.Tensor, journal: Journal
) -> tuple[list[torch.Tensor], dict[str, list[int]]]:
    """Return the experts of every unit from most to least important, with the weights of one layer at a time.

    Args:
        layerwise: The dense model.
        units: Its units, at most one per layer.
        config: The criterion.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        journal: Saves the scores.

    Returns:
        Orders as for `SortedModel`: the experts of every group of the router, each of shape `[experts, groups]`. And,
        by layer, the experts that get fewer tokens than they have features, too few to judge them by.
    """
    by_layer = {unit.unit.layer: unit for unit in units}

    def measure() -> dict[str, torch.Tensor]:
        dtype, measured = autocast_dtype(layerwise.model, config.search_dtype), {}
        if config.expert_criterion == "loss":
            return removal_scores(layerwise, by_layer, windows[: config.fisher_samples], config.seed, dtype)
        states, arguments = layerwise.embed(windows[processes.share(len(windows))])
        with progress_bar(len(layerwise.layers), "Experts", "layer") as bar:
            for index, layer in layerwise.iter_layers():
                runner = layerwise.runner(layer, arguments[index], dtype)
                if unit := by_layer.get(index):
                    totals = torch.zeros(2, unit.unit.groups, dtype=torch.float64)
                    with unit.output.module.register_forward_pre_hook(partial(add_contributions, totals)):
                        runner.advance(states, config.batch_size)
                    sums, tokens = processes.sum_(totals)
                    measured |= {f"{index}.scores": sums / tokens.clamp_min(1), f"{index}.tokens": tokens}
                else:
                    runner.advance(states, config.batch_size)
                bar.update()
        return measured

    measured = layerwise.counter.tensors(journal, "experts", measure)
    scores = (measured[f"{layer}.scores"].view(unit.sections, -1) for layer, unit in by_layer.items())
    orders = [one.argsort(dim=1, descending=True, stable=True).T for one in scores]
    few = {str(layer): measured[f"{layer}.tokens"] < unit.width for layer, unit in by_layer.items()}
    return orders, {layer: one.nonzero()[:, 0].tolist() for layer, one in few.items() if one.any()}


@contextmanager
def counted_tokens(units: Sequence[ModelUnit]) -> Iterator[list[torch.Tensor]]:
    """Count the tokens that are routed to each expert of every unit, in the context and in this process."""
    counts = [torch.zeros(unit.unit.groups, dtype=torch.long) for unit in units]

    def count(total: torch.Tensor, experts: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        total += inputs[1].flatten().cpu().bincount(minlength=len(total))

    with ExitStack() as hooks:
        for unit, total in zip(units, counts):
            hooks.enter_context(unit.output.module.register_forward_pre_hook(partial(count, total)))
        yield counts

"""Order of the experts of a mixture, and how many tokens each of them gets."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..engine import LayerwiseModel
from ..modeling.families import ModelUnit
from ..plan import Plan
from ..utils.resume import Journal


def order_experts(
    layerwise: LayerwiseModel, units: Sequence[ModelUnit], plan: Plan, windows: torch.Tensor, journal: Journal
) -> tuple[list[torch.Tensor], dict[str, list[int]]]:
    """Return the experts of every unit, of which layers have one at most, from most to least important.

    Windows are those of the calibration, token ids of shape `[windows, window length]`. The journal saves the scores.

    Returns:
        Orders as for `SortedModel`: the experts of every group of the router, each of shape `[experts, groups]`. And,
        by layer, the experts that get fewer tokens than they have features, too few to judge them by.
    """
    by_layer = {unit.unit.layer: unit for unit in units}
    measure = partial(plan.function("expert_criterion"), layerwise, by_layer, plan, windows)
    measured = journal.tensors("statistics", measure)
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

"""Importance of items, from the weights of a unit's output projection and the statistics of its input."""

from collections.abc import Callable

import torch

from .statistics import Statistics


Criterion = Callable[[torch.Tensor, Statistics, int], torch.Tensor]


def wanda(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Wanda (Sun et al. 2024), the paper's criterion: `Σ_out |W| · ‖X‖₂`, summed over the columns of an item.

    Args:
        weight: Output projection, shape `[out_features, features]`.
        statistics: Of its input.
        block: Columns of one item.

    Returns:
        Scores, shape `[items]`; the higher, the more important.
    """
    norms = statistics.gram.diagonal().clamp_min(0).sqrt().to(weight.device)
    return (weight.float().abs().sum(0) * norms).view(-1, block).sum(1)


CRITERIA: dict[str, Criterion] = {"wanda": wanda}


def order_items(criterion: str, weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Items from most to least important, shape `[items]`. Ties keep their order in the model."""
    scores = CRITERIA[criterion](weight, statistics, block)
    return torch.argsort(scores, descending=True, stable=True).cpu()

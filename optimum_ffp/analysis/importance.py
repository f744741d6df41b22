"""Importance order of a unit's groups, from the weight of its output projection and the statistics of its input."""

from collections.abc import Callable

import torch

from ..utils.cholesky import factorize, ridge_damping
from .gram import Statistics


def order_groups(
    score: Callable[[torch.Tensor, Statistics, int], torch.Tensor],
    weight: torch.Tensor,
    statistics: Statistics,
    block: int,
    fisher: torch.Tensor | None = None,
    sections: int = 1,
) -> torch.Tensor:
    """Return the groups from most to least important. Ties keep their order in the model.

    Args:
        score: Function of a criterion, a module in `criteria`.
        weight: Weight of the output projection, shape `[out_features, features]`.
        statistics: Statistics of its input.
        block: Number of columns per group.
        fisher: `G = E[g gᵀ]` of its output, shape `[out_features, out_features]`, if the criterion is weighted by it.
        sections: Number of sections of columns, each of which has `block / sections` columns of every group and is
            ordered separately: the KV heads, if a group is one query head of each.

    Returns:
        Group indices, shape `[groups]`, or `[groups, sections]` with several sections.
    """
    if fisher is not None:
        weight = root(fisher.to(weight.device)) @ weight.float()
    scores = score(weight, statistics, block // sections).view(sections, -1)
    orders = torch.argsort(scores, descending=True, stable=True).cpu()
    return orders[0] if sections == 1 else orders.T.contiguous()


def root(matrix: torch.Tensor) -> torch.Tensor:
    """Return `R` with `Rᵀ R = matrix` for a symmetric, positive semi-definite matrix; float32.

    Scores only depend on `Rᵀ R`, and an eigendecomposition, which gives the symmetric root, takes ten times as long.
    """
    return factorize(matrix, ridge_damping(matrix, 0.0)).T.float()

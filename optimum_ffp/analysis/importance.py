"""Importance order of a unit's groups, from the weight of its output projection and the statistics of its input."""

from functools import partial

import torch

from ..config.choices import find_choice
from ..config.fields import Config
from ..utils.cholesky import factorize, ridge_damping
from .gram import Statistics


def order_groups(
    criterion: str,
    weight: torch.Tensor,
    statistics: Statistics,
    block: int,
    fisher: torch.Tensor | None = None,
    sections: int = 1,
    options: Config | None = None,
) -> torch.Tensor:
    """Return the groups from most to least important. Ties keep their order in the model.

    Args:
        criterion: Name of a module in `criteria`, or the dotted name of any other module.
        weight: Weight of the output projection, shape `[out_features, features]`.
        statistics: Statistics of its input.
        block: Number of columns per group.
        fisher: `G = E[g gᵀ]` of its output, shape `[out_features, out_features]`, if the criterion is weighted by it.
        sections: Number of sections of columns, each of which has `block / sections` columns of every group and is
            ordered separately: the KV heads, if a group is one query head of each.
        options: Options of the criterion, if it has any.

    Returns:
        Group indices, shape `[groups]`, or `[groups, sections]` with several sections.
    """
    if fisher is not None:
        weight = root(fisher.to(weight.device)) @ weight.float()
    score = find_choice("criterion", criterion).score
    if options is not None:
        score = partial(score, options=options)
    scores = score(weight, statistics, block // sections)
    orders = torch.argsort(scores.view(sections, -1), descending=True, stable=True).cpu()
    return orders[0] if sections == 1 else orders.T.contiguous()


def root(matrix: torch.Tensor) -> torch.Tensor:
    """Return `R` with `Rᵀ R = matrix` for a symmetric, positive semi-definite matrix; float32.

    It is the transposed Cholesky factor: scores only depend on `Rᵀ R`, and an eigendecomposition, which would give the
    symmetric root, takes ten times as long. Directions with no loss get one the size of a rounding error.
    """
    factor = factorize(matrix, ridge_damping(matrix, 0.0))
    return factor.T.float()

"""The order of a unit's groups, from the weights of its output projection and the statistics of its input."""

from importlib import import_module
from types import ModuleType

import torch

from ..options import FISHER
from .gram import Statistics


def find_criterion(name: str) -> ModuleType:
    """The module in `criteria` that a criterion is."""
    return import_module(f"{__package__}.criteria.{name.replace('-', '_')}")


def order_groups(
    criterion: str, weight: torch.Tensor, statistics: Statistics, block: int, fisher: torch.Tensor | None = None
) -> torch.Tensor:
    """Groups from most to least important. Ties keep their order in the model.

    Args:
        criterion: Name of a module in `criteria`.
        weight: Output projection, shape `[out_features, features]`.
        statistics: Of its input.
        block: Columns of one group.
        fisher: `G = E[g gᵀ]` of its output, shape `[out_features, out_features]`, for criteria weighted by it.

    Returns:
        Group indices, shape `[groups]`.
    """
    if criterion.startswith(FISHER):
        weight = symmetric_root(fisher).to(weight.device) @ weight.float()
    scores = find_criterion(criterion).score(weight, statistics, block)
    return torch.argsort(scores, descending=True, stable=True).cpu()


def symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    """`R` with `R R = matrix` for a symmetric, positive semi-definite matrix; float32."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()

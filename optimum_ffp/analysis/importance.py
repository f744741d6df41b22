"""Importance of groups, from the weights of a unit's output projection and the statistics of its input."""

import math
from collections.abc import Callable

import torch

from ..options import FISHER_CRITERIA
from ..utils.cholesky import factorise, ridge_damping
from .gram import Statistics


# As of the ridge regression that the order is made for.
OBS_DAMPING = 0.01
# Portions that groups are removed in: more change the order little and cost a rank update each.
OBS_STEPS = 96

Criterion = Callable[[torch.Tensor, Statistics, int], torch.Tensor]


def wanda(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Wanda (Sun et al. 2024), the paper's criterion: `Σ_out |W| · ‖X‖₂`, summed over the columns of a group.

    Args:
        weight: Output projection, shape `[out_features, features]`.
        statistics: Of its input.
        block: Columns of one group.

    Returns:
        Scores, shape `[groups]`; the higher, the more important.
    """
    norms = statistics.gram.diagonal().clamp_min(0).sqrt().to(weight.device)
    return (weight.float().abs().sum(0) * norms).view(-1, block).sum(1)


def flap(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """FLAP's weighted fluctuation (An et al. 2024): `Var(X) · Σ_out W²`, summed over the columns of a group.

    Arguments and result as for `wanda`.
    """
    fluctuation = statistics.variance.to(weight.device)
    return (weight.float().square().sum(0) * fluctuation).view(-1, block).sum(1)


def obs(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Greedy backward elimination on the inverse Gram matrix (optimal brain surgeon).

    Removes the groups `P` whose loss after the ridge regression of Eq. 6 is the smallest, `tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)`
    with `H + λI` in place of `H`, lets the rest compensate, and goes on. Groups go in up to `OBS_STEPS` portions.

    Arguments and result as for `wanda`; a score is how long the group has stayed.
    """
    weight = weight.float()
    gram = statistics.gram.to(weight.device).double()
    factor, _ = factorise(gram, ridge_damping(gram, OBS_DAMPING))
    inverse = torch.cholesky_inverse(factor).float()
    left = torch.arange(len(gram) // block, device=weight.device)
    scores = torch.zeros(len(left), device=weight.device)
    portion = math.ceil(len(left) / OBS_STEPS)
    while len(left) > portion:
        losses = _removal_losses(weight, inverse, block)
        ranking = losses.argsort()
        removed, retained = ranking[:portion], ranking[portion:].sort().values
        # Within a portion the order of the losses stands in for further steps.
        scores[left[removed]] = torch.arange(portion, device=scores.device) + len(scores) - len(left) + 0.0
        gone, kept = (_columns(groups, block) for groups in (removed, retained))
        solution = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, kept])
        weight = weight[:, kept] - weight[:, gone] @ solution
        inverse = inverse[kept][:, kept] - inverse[kept][:, gone] @ solution
        left = left[retained]
    scores[left[_removal_losses(weight, inverse, block).argsort()]] = (
        torch.arange(len(left), device=scores.device) + len(scores) - len(left) + 0.0
    )
    return scores


def _columns(groups: torch.Tensor, block: int) -> torch.Tensor:
    return (groups[:, None] * block + torch.arange(block, device=groups.device)).flatten()


def _removal_losses(weight: torch.Tensor, inverse: torch.Tensor, block: int) -> torch.Tensor:
    if block == 1:
        return weight.square().sum(0) / inverse.diagonal()
    groups = len(inverse) // block
    blocks = inverse.view(groups, block, groups, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(-1, groups, block).permute(1, 2, 0)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


CRITERIA: dict[str, Criterion] = {"wanda": wanda, "flap": flap, "obs": obs, "fisher-obs": obs}


def order_groups(
    criterion: str, weight: torch.Tensor, statistics: Statistics, block: int, fisher: torch.Tensor | None = None
) -> torch.Tensor:
    """Groups from most to least important. Ties keep their order in the model.

    Args:
        criterion: Name in `CRITERIA`.
        weight: Output projection, shape `[out_features, features]`.
        statistics: Of its input.
        block: Columns of one group.
        fisher: `G = E[g gᵀ]` of its output, shape `[out_features, out_features]`, for criteria weighted by it.

    Returns:
        Group indices, shape `[groups]`.
    """
    if criterion in FISHER_CRITERIA:
        weight = symmetric_root(fisher).to(weight.device) @ weight.float()
    scores = CRITERIA[criterion](weight, statistics, block)
    return torch.argsort(scores, descending=True, stable=True).cpu()


def symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    """`R` with `R R = matrix` for a symmetric, positive semi-definite matrix; float32."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()

"""Optimal brain surgeon: backward elimination of groups, the rest compensating for every one that is removed."""

import math

import torch

from ...utils.cholesky import factorise, ridge_damping
from ..gram import Statistics


# λ of the ridge regression that the order is made for.
DAMPING = 0.01
# Number of portions that groups are removed in: more change the order little, and each costs a low-rank update.
PORTIONS = 96
# The damped matrix, its factor and inverse in float64, and what is left of it in float32.
WORKSPACE_BYTES = 36


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Greedy backward elimination on the inverse Gram matrix (optimal brain surgeon).

    Removes the groups `P` whose loss after the ridge regression of Eq. 6 is the smallest, `tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)`
    with `H + λI` in place of `H`, lets the rest compensate, and goes on. Groups go in up to `PORTIONS` portions.

    Args:
        weight: Output projection, shape `[out_features, features]`.
        statistics: Of its input.
        block: Columns of one group.

    Returns:
        Scores, shape `[groups]`: when each group was removed; the higher, the later.
    """
    weight = weight.float()
    gram = statistics.gram.to(weight.device).double()
    factor, _ = factorise(gram, ridge_damping(gram, DAMPING))
    inverse = torch.cholesky_inverse(factor).float()
    left = torch.arange(len(gram) // block, device=weight.device)
    scores = torch.zeros(len(left), device=weight.device)
    portion = math.ceil(len(left) / PORTIONS)
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

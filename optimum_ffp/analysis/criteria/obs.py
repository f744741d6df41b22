"""Optimal brain surgeon: backward elimination of groups with compensation by the remaining ones."""

import math

import torch

from ...utils.cholesky import ROWS, factorize, ridge_damping
from ..gram import Statistics


# λ of the ridge regression whose loss is minimized.
DAMPING = 0.01
# Number of portions in which groups are removed. More hardly change the order, and each costs a low-rank update.
PORTIONS = 96


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Score groups by greedy backward elimination on the inverse Gram matrix (optimal brain surgeon).

    Repeatedly removes the groups `P` with the smallest loss after the ridge regression of Eq. 6,
    `tr(W_P (H⁻¹_PP)⁻¹ W_Pᵀ)` with `H + λI` in place of `H`, and compensates the remaining groups. Groups are removed
    in up to `PORTIONS` portions. The score of a group is its rank in the order of removal.
    """
    weight = weight.float()
    gram = statistics.gram.to(weight.device)
    factor = factorize(gram, ridge_damping(gram, DAMPING))
    inverse = torch.cholesky_inverse(factor, out=factor).mT.float()
    del factor
    left = torch.arange(len(gram) // block, device=weight.device)
    scores = torch.zeros(len(left), device=weight.device)
    portion = math.ceil(len(left) / PORTIONS)
    while True:
        ranking = _removal_losses(weight, inverse, block).argsort()
        removed, retained = ranking[:portion], ranking[portion:].sort().values
        # Groups of one portion are ranked by their losses, without recomputing them in between.
        scores[left[removed]] = torch.arange(len(removed), device=scores.device) + len(scores) - len(left) + 0.0
        if not len(retained):
            return scores
        columns = torch.arange(len(inverse), device=inverse.device).view(-1, block)
        pruned, remaining = columns[removed].flatten(), columns[retained].flatten()
        solution = torch.linalg.solve(inverse[pruned][:, pruned], inverse[pruned][:, remaining])
        weight = weight[:, remaining] - weight[:, pruned] @ solution
        cross = inverse[:, pruned][remaining]
        inverse = _compact(inverse, remaining).addmm_(cross, solution, alpha=-1)
        left = left[retained]


def _compact(matrix: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the rows and columns of ascending indices in place: the memory of the matrix is overwritten."""
    size, flat = len(indices), matrix.view(-1)
    # Rows only move forward, never over one that is still to be read.
    for start, rows in zip(range(0, size, ROWS), indices.split(ROWS)):
        flat[start * size : (start + len(rows)) * size] = matrix[rows][:, indices].flatten()
    return flat[: size * size].view(size, size)


def _removal_losses(weight: torch.Tensor, inverse: torch.Tensor, block: int) -> torch.Tensor:
    if block == 1:
        return weight.square().sum(0) / inverse.diagonal()
    groups = len(inverse) // block
    blocks = inverse.view(groups, block, groups, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(-1, groups, block).permute(1, 2, 0)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))

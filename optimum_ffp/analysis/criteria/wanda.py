"""Wanda, the paper's criterion: magnitude of the weights times norm of their inputs."""

import torch

from ..gram import Statistics


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Return Wanda scores (Sun et al. 2024), the paper's criterion: `Σ_out |W| · ‖X‖₂`, summed over a group's columns.

    Args:
        weight: Weight of the output projection, shape `[out_features, features]`.
        statistics: Statistics of its input.
        block: Number of columns per group.

    Returns:
        Scores, shape `[groups]`; higher is more important.
    """
    norms = statistics.gram.diagonal().clamp_min(0).sqrt().to(weight.device)
    return (weight.float().abs().sum(0) * norms).view(-1, block).sum(1)

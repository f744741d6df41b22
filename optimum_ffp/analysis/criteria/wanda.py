"""Wanda, the paper's criterion: size of the weights times that of their inputs."""

import torch

from ..gram import Statistics


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
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

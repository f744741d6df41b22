"""Wanda, the paper's criterion: magnitude of the weights times norm of their inputs."""

import torch

from ..gram import Statistics


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Return the paper's scores, Wanda (Sun et al. 2024): `Σ_out |W| · ‖X‖₂`, summed over the columns of a group."""
    norms = statistics.gram.diagonal().sqrt().to(weight.device)
    return (weight.float().abs().sum(0) * norms).view(-1, block).sum(1)

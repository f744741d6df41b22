"""FLAP: fluctuation of the inputs, weighted by the size of the weights."""

import torch

from ..gram import Statistics


def score(weight: torch.Tensor, statistics: Statistics, block: int) -> torch.Tensor:
    """Return FLAP's weighted fluctuation (An et al. 2024): `Var(X) · Σ_out W²`, summed over the columns of a group."""
    fluctuation = statistics.variance.to(weight.device)
    return (weight.float().square().sum(0) * fluctuation).view(-1, block).sum(1)

"""Losses and perplexity over fixed windows."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..utils.lm_head import decode, losses_in_pieces


@torch.no_grad()
def window_losses(
    model: PreTrainedModel,
    windows: torch.Tensor,
    batch_size: int = 1,
    on_batch: Callable[[int], Any] | None = None,
) -> torch.Tensor:
    """Mean negative log-likelihood per window, in nats per predicted token.

    Args:
        model: A causal LM.
        windows: Token ids, shape `[windows, window length]`. The first token of a window is not predicted.
        batch_size: Windows per forward pass.
        on_batch: Called with the number of windows after every batch.

    Returns:
        Losses, float64, shape `[windows]`.
    """
    losses = []
    for batch in windows.split(batch_size):
        losses.append(losses_in_pieces(model, decode(model, batch), batch))
        if on_batch:
            on_batch(len(batch))
    return torch.cat(losses)


def to_perplexity(loss: float) -> float:
    """`exp(loss)`; infinite on overflow, NaN if the loss is NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf

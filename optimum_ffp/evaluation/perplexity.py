"""Losses and perplexity over fixed windows."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..utils.lm_head import DecoderOutput, decode, token_losses
from ..vocabulary.trimmed import TrimmedVocabulary


@torch.no_grad()
def window_losses(
    model: PreTrainedModel,
    windows: torch.Tensor,
    batch_size: int = 1,
    on_batch: Callable[[int], Any] | None = None,
    on_decoded: Callable[[DecoderOutput], Callable[[torch.Tensor], Any] | None] | None = None,
    vocabulary: TrimmedVocabulary | None = None,
) -> torch.Tensor:
    """Return the mean negative log-likelihood per window, in nats per predicted token, float64, shape `[windows]`.

    Args:
        model: A causal LM.
        windows: Token ids, shape `[windows, window length]`. The first token of a window is not predicted.
        batch_size: Windows per forward pass.
        on_batch: Called with the number of windows after every batch.
        on_decoded: Called with the output of `decode` of every batch. If it returns a function, that is called with
            every chunk of the batch's logits.
        vocabulary: That of the model, if the windows are in the tokens of the dense model. The likelihood of a token
            is that of all of its pieces, so that losses are those of the same text, per token of the dense model.
    """
    losses = [torch.empty(0, dtype=torch.float64)]
    for batch in windows.split(batch_size) if len(windows) else ():
        expanded = vocabulary.expand(batch) if vocabulary else None
        tokens = batch if expanded is None else expanded.tokens
        decoded = decode(model, tokens)
        on_logits = on_decoded(decoded) if on_decoded else None
        rows = token_losses(model, decoded, tokens, on_logits)
        if expanded is None:
            losses.append(rows.mean(1))
        else:
            losses.append((rows * expanded.predicts[:, :-1].cpu()).sum(1) / (batch.shape[1] - 1))
        if on_batch:
            on_batch(len(batch))
    return torch.cat(losses)


def describe_losses(losses: torch.Tensor) -> dict[str, Any]:
    """Return the JSON-ready `perplexity`, mean `loss` and `losses` of windows, in nats per token."""
    loss = float(losses.mean())
    return {"perplexity": to_perplexity(loss), "loss": loss, "losses": losses.tolist()}


def to_perplexity(loss: float) -> float:
    """Return `exp(loss)`, which is infinite on overflow, and NaN if the loss is NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(perplexity: float | None, windows: Mapping[str, Any]) -> float | None:
    """Return the mean loss in bits per UTF-8 byte of the text, which doesn't depend on the size of tokens.

    Args:
        perplexity: Perplexity of a model on the windows; `None` stands for NaN and infinity, as in JSON.
        windows: The record of `Windows.describe`. Those of earlier versions lack the bytes; for these, the result is
            `None`.
    """
    if "bytes" not in windows:
        return None
    tokens = windows["windows"] * (windows["window_length"] - 1)
    return math.log2(perplexity or math.nan) * tokens / windows["bytes"]

"""A model's head on a few positions at a time: of all logits there is never more than a part."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput


# Positions whose logits are alive at once: at a vocabulary of 128k this is 0.13 GB in float32.
POSITIONS = 256


def decode(model: PreTrainedModel, tokens: torch.Tensor) -> ModelOutput:
    """Runs a causal LM up to its head.

    Args:
        model: A causal LM.
        tokens: Token ids, shape `[windows, window length]`.

    Returns:
        With `last_hidden_state`, shape `[windows, window length, hidden size]`.
    """
    return model.get_decoder()(tokens.to(model.device), use_cache=False)


def logits_in_pieces(model: PreTrainedModel, decoded: ModelOutput) -> Iterator[tuple[int, torch.Tensor]]:
    """Runs the head on what `decode` has returned, and whatever the model does to its logits (soft caps, scales).

    Yields:
        The first position of a piece and its logits, shape `[windows, at most POSITIONS, vocabulary]`.
    """
    for start in range(0, decoded.last_hidden_state.shape[1], POSITIONS):
        piece = decoded.last_hidden_state[:, start : start + POSITIONS]
        # Without a name for them here, so that they are gone before the next ones are made.
        yield start, _logits(model, replace(decoded, last_hidden_state=piece))


def _logits(model: PreTrainedModel, decoded: ModelOutput) -> torch.Tensor:
    unread = torch.zeros(decoded.last_hidden_state.shape[:2], dtype=torch.long, device=model.device)
    with _answering(model.get_decoder(), decoded):
        return model(unread, use_cache=False).logits


@contextmanager
def _answering(decoder: nn.Module, answer: ModelOutput) -> Iterator[None]:
    """Lets the decoder return this whatever it is asked."""
    # Where the model lies on several devices accelerate has put another `forward` there.
    before = vars(decoder).get("forward")
    decoder.forward = lambda *inputs, **options: answer
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before

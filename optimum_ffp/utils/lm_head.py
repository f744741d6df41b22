"""A model's head on a few positions at a time: of all logits there is never more than a part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

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
    return _decoder(model)(tokens.to(model.device), use_cache=False)


def logits_in_pieces(model: PreTrainedModel, *decoded: ModelOutput) -> Iterator[tuple[Any, ...]]:
    """Runs the head on what `decode` has returned, and whatever the model does to its logits (soft caps, scales).

    Args:
        model: The causal LM.
        decoded: What to run it on, of one window length.

    Yields:
        The first position of a piece and its logits of each, shape `[windows, at most POSITIONS, vocabulary]`.
    """
    with _cast_once(model):
        for start in range(0, decoded[0].last_hidden_state.shape[1], POSITIONS):
            pieces = (
                replace(one, last_hidden_state=one.last_hidden_state[:, start:][:, :POSITIONS]) for one in decoded
            )
            # Without names for them here, so that they are gone before the next ones are made.
            yield start, *(_logits(model, piece) for piece in pieces)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for the time of the context.

    Where a model lies on several devices accelerate has replaced that of its modules, too, and gets its own back.
    """
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    # Llama4ForCausalLM and MllamaForCausalLM call another attribute their base model than they have.
    return model.model if decoder is model else decoder


def _logits(model: PreTrainedModel, decoded: ModelOutput) -> torch.Tensor:
    unread = torch.zeros(decoded.last_hidden_state.shape[:2], dtype=torch.long, device=model.device)
    with replaced_forward(_decoder(model), lambda *inputs, **options: decoded):
        return model(unread, use_cache=False).logits


@contextmanager
def _cast_once(model: PreTrainedModel) -> Iterator[None]:
    """The head's weight in the type that autocast computes in. It would be cast again for every piece."""
    device = model.device.type
    if model.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        yield
        return
    head = model.get_output_embeddings()
    weight = head.weight.data
    head.weight.data = weight.to(torch.get_autocast_dtype(device))
    try:
        yield
    finally:
        head.weight.data = weight

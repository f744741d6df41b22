"""Logits in chunks of positions, so that those of a whole window are never materialized."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


# Number of positions per chunk of logits: 0.13 GB in float32 for a vocabulary of 128k.
POSITIONS = 256


class DecoderOutput(Protocol):
    """What every decoder returns: states after the last norm, shape `[windows, window length, hidden size]`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    last_hidden_state: torch.Tensor


def decode(model: PreTrainedModel, tokens: torch.Tensor, device: torch.device | None = None) -> DecoderOutput:
    """Run a causal LM without its head on token ids, shape `[windows, window length]`.

    The `device` to run on is needed if the weights are elsewhere.
    """
    return decoder_of(model)(tokens.to(device or model.device), use_cache=False)


def chunked_logits(model: PreTrainedModel, decoded: DecoderOutput) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first position of every chunk of an output of `decode`, and what `head_logits` returns for the chunk.

    Logits have the shape `[windows, at most POSITIONS, vocabulary]`.
    """
    hidden = decoded.last_hidden_state
    with head_in_autocast_dtype(model, hidden.device):
        for start in range(0, hidden.shape[1], POSITIONS):
            # A contiguous copy: with a strided view, matmul would first copy the head's weight.
            chunk = hidden[:, start : start + POSITIONS].clone(memory_format=torch.contiguous_format)
            yield start, head_logits(model, replace(decoded, last_hidden_state=chunk))


def token_losses(
    model: PreTrainedModel,
    decoded: DecoderOutput,
    tokens: torch.Tensor,
    on_logits: Callable[[torch.Tensor], Any] | None = None,
) -> torch.Tensor:
    """Return the negative log-likelihood of every token, in nats, given what is decoded.

    The first token of a window is not predicted. `on_logits` is called with the logits of every chunk. The shape of
    `tokens` is `[windows, window length]`, that of the losses, float64 on the CPU, `[windows, window length - 1]`.
    """
    losses = []
    for start, logits in chunked_logits(model, decoded):
        targets = tokens[:, start + 1 : start + 1 + logits.shape[1]].to(logits.device)
        # The vocabulary must be the last dimension: softmax over a strided one loses four digits in float32.
        predicted = logits[:, : targets.shape[1]].float().flatten(0, 1)
        losses.append(cross_entropy(predicted, targets.flatten(), reduction="none").view(targets.shape))
        del predicted
        if on_logits:
            on_logits(logits)
        del logits
    # A single transfer for all chunks, since each synchronizes the device.
    return torch.cat(losses, 1).cpu().double()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's `forward` for the duration of the context."""
    # Accelerate replaces it too for models on several devices.
    original = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if original is not None:
            module.forward = original


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return a causal LM without its head."""
    decoder = model.get_decoder()
    # Llama4ForCausalLM and MllamaForCausalLM lack the attribute that their base_model_prefix names.
    return model.get_submodule("model") if decoder is model else decoder


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """Return the token embedding of a causal LM."""
    return cast(nn.Embedding, model.get_input_embeddings())


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the head of a causal LM."""
    return cast(nn.Linear, model.get_output_embeddings())


def token_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters of a causal LM with a row per token, by name; a tied matrix counts once."""
    rows = {id(one) for one in (embedding_of(model).weight, head_of(model).weight, head_of(model).bias)}
    return {name: one for name, one in model.named_parameters() if id(one) in rows}


def head_logits(model: PreTrainedModel, decoded: DecoderOutput) -> torch.Tensor:
    """Return the logits of an output of `decode`, with the model's processing of logits (soft caps, scales)."""
    hidden = decoded.last_hidden_state
    placeholder = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    with replaced_forward(decoder_of(model), lambda *inputs, **options: decoded):
        # Bypass the model's hooks, since its own forward pass may call this.
        return model.forward(placeholder, use_cache=False).logits


@contextmanager
def head_in_autocast_dtype(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Cast the head's weight to the autocast dtype of a device once instead of for every chunk."""
    head = head_of(model)
    is_cast = model.dtype == torch.float32 and torch.is_autocast_enabled(device.type)
    # Autocast caches its cast of trainable weights.
    if not is_cast or head.weight.requires_grad:
        yield
        return
    weight = head.weight.data
    head.weight.data = weight.to(torch.get_autocast_dtype(device.type))
    try:
        yield
    finally:
        head.weight.data = weight


def logit_bytes(vocabulary: int, positions: int, windows: int = 0) -> int:
    """Return the bytes of a chunk of logits, its copies and gradient, and the losses of several windows at once."""
    return min(POSITIONS, positions) * vocabulary * (16 + 12 * windows)

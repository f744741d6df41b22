"""Run one decoder layer on the hidden states of windows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PretrainedConfig

from ..utils.precision import computing_in
from .token_counter import TokenCounter


# Positional and keyword arguments of a layer other than the hidden states: masks and positions, equal for all windows
# of one length.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class LayerRunner:
    """Runs one decoder layer, whose weights are loaded, with an autocast dtype, and counts the tokens that it reads.

    Hidden states may be in host memory and in a dtype other than the model's: they are moved to the layer's device and
    dtype for its forward pass.
    """

    def __init__(self, layer: nn.Module, arguments: Arguments, dtype: torch.dtype | None, counter: TokenCounter):
        self.layer, self.arguments, self.dtype, self.counter = layer, arguments, dtype, counter
        weight = next(layer.parameters())
        self.device, self.weight_dtype = weight.device, weight.dtype

    @torch.no_grad()
    def advance(self, states: torch.Tensor, batch_size: int = 1) -> None:
        """Replace hidden states, shape `[windows, window length, hidden size]`, with those after the layer."""
        for batch in states.split(batch_size) if len(states) else ():
            batch.copy_(self.output(batch))

    def output(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the hidden states after the layer, on its device and in the dtype that it computes in.

        `weights` replace the layer's parameters by name, and may have another dtype.
        """
        backward = 0 if not torch.is_grad_enabled() else 1 if weights is None else 2
        self.counter.layer_tokens += (1 + backward) * hidden.shape[0] * hidden.shape[1]
        used = {name: weight.to(self.weight_dtype) for name, weight in (weights or {}).items()}
        positional, keywords = self.arguments
        with computing_in(self.device, self.dtype):
            inputs = (hidden.to(self.device, self.weight_dtype), *positional)
            return functional_call(self.layer, used, inputs, keywords)


def score_bytes(config: PretrainedConfig, length: int) -> int:
    """Return the bytes of a layer's attention scores per token, which only eager attention materializes."""
    return 8 * config.num_attention_heads * length if config._attn_implementation == "eager" else 0


def activation_bytes(config: PretrainedConfig, length: int, width: int, itemsize: int) -> int:
    """Return the bytes that a window of `length` tokens takes in a layer whose widest unit has `width` channels."""
    return length * (16 * config.hidden_size + (3 * itemsize + 8) * width + score_bytes(config, length))

"""Run one decoder layer on the hidden states of windows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ..utils.precision import computing_in


class Reached(Exception):
    """Stops a forward pass at a watched module."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of a layer beside the hidden states: masks and positions, alike for all windows of one length."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]


class LayerRunner:
    """Runs one decoder layer.

    The hidden states may be in host memory and in another dtype than the model: they are moved to the layer's device
    and dtype for its forward pass.

    Args:
        layer: The layer, with its weights loaded.
        arguments: Its arguments beside the hidden states.
        dtype: Autocast dtype; `None` for the model's own.
    """

    def __init__(self, layer: nn.Module, arguments: Arguments, dtype: torch.dtype | None):
        self.layer, self.arguments, self.dtype = layer, arguments, dtype
        weight = next(layer.parameters())
        self.device, self.own_dtype = weight.device, weight.dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after the layer, with the shape, dtype and device of the input."""
        return self.output(hidden).to(hidden)

    @torch.no_grad()
    def advance(self, states: torch.Tensor, batch_size: int = 1) -> None:
        """Replace hidden states before the layer by those after it.

        Args:
            states: Shape `[windows, window length, hidden size]`.
            batch_size: Windows per forward pass.
        """
        for batch in states.split(batch_size) if len(states) else ():
            batch.copy_(self.output(batch))

    def output(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the hidden states after the layer, on its device and in the dtype that it computes in.

        Args:
            hidden: Hidden states before the layer, shape `[windows, window length, hidden size]`.
            weights: Tensors to use instead of the layer's parameters, by name. They may be in another dtype.
        """
        used = {name: weight.to(self.own_dtype) for name, weight in (weights or {}).items()}
        with computing_in(self.device, self.dtype):
            inputs = (hidden.to(self.device, self.own_dtype), *self.arguments.positional)
            output = functional_call(self.layer, used, inputs, self.arguments.keywords)
        return output[0] if isinstance(output, tuple) else output

    def watch(self, module: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output and the module's input, shape `[tokens, features]`, on the layer's device."""
        with _reads_of(module) as seen:
            return self(hidden), seen[0]

    def input_of(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the module's input, shape `[tokens, features]`, on the layer's device.

        The forward pass stops at the module.
        """
        with _reads_of(module, go_on=False) as seen, suppress(Reached):
            self(hidden)
        if not seen:
            raise AssertionError("a unit's output projection runs whenever its layer does")
        return seen[0]


@contextmanager
def _reads_of(module: nn.Module, go_on: bool = True) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(0, -2))
        if not go_on:
            raise Reached

    hook = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()

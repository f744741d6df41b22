"""Run a model one decoder layer at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from ..utils.precision import computing_in


class LayerRunner:
    """Runs one decoder layer on the hidden states of one window.

    The hidden states may be in host memory and in another dtype than the model: each window is moved to the layer's
    device and dtype for its forward pass.
    """

    def __init__(self, layer: nn.Module, arguments: dict[str, Any], dtype: torch.dtype | None):
        self.layer, self.arguments, self.dtype = layer, arguments, dtype
        weight = next(layer.parameters())
        self.device, self.own_dtype = weight.device, weight.dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after the layer, with the shape, dtype and device of the input."""
        return self.output(hidden).to(hidden)

    def output(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the hidden states after the layer, on its device and in the dtype that it computes in.

        Args:
            hidden: Hidden states before the layer, shape `[1, window length, hidden size]`.
            weights: Tensors to use instead of the layer's parameters, by name. They may be in another dtype.
        """
        used = {name: weight.to(self.own_dtype) for name, weight in (weights or {}).items()}
        with computing_in(self.device, self.dtype):
            inputs = hidden.to(self.device, self.own_dtype)
            output = functional_call(self.layer, used, (inputs,), self.arguments)
        return output[0] if isinstance(output, tuple) else output

    def watch(self, module: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output and the module's input, shape `[tokens, features]`, on the layer's device."""
        with _reads_of(module) as seen:
            return self(hidden), seen[0]

    def input_of(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the module's input, shape `[tokens, features]`, on the layer's device.

        The forward pass stops at the module.
        """
        with _reads_of(module, go_on=False) as seen, suppress(_Reached):
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
            raise _Reached

    hook = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def enter(
    model: PreTrainedModel, layers: Sequence[nn.Module], windows: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return the hidden states before the first layer for all windows, and the keyword arguments of every layer.

    The states have shape `[windows, window length, hidden size]`. They are in host memory, in `dtype` if it is given,
    and preallocated as one tensor to avoid heap fragmentation.
    """
    states: torch.Tensor | None = None
    arguments: dict[int, dict[str, Any]] = {}
    seen: list[torch.Tensor] = []

    def watch(index: int):
        def record(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            if index == 0:
                seen.append(inputs[0])
                # All windows have the same length and so the same masks and positions: one full pass is enough.
                if arguments:
                    raise _Reached
            arguments[index] = keywords

        return record

    hooks = [layer.register_forward_pre_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for number, window in enumerate(windows.split(1)):
            with suppress(_Reached):
                model.base_model(window.to(model.device), use_cache=False)
            hidden = seen.pop()
            if states is None:
                states = torch.empty(len(windows), *hidden.shape[1:], dtype=dtype or hidden.dtype)
            states[number] = hidden[0]
    finally:
        for hook in hooks:
            hook.remove()
    return states, [arguments[index] for index in range(len(layers))]


class _Reached(Exception):
    """Stops a forward pass at the watched module."""

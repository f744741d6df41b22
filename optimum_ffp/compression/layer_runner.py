"""Running a model one decoder layer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..utils.precision import computing_in


class LayerRunner:
    """Runs one decoder layer on hidden states of one window.

    They may wait in host memory, and in another type than the model's: the layer borrows one window at a time.
    """

    def __init__(self, layer: nn.Module, arguments: dict[str, Any], dtype: torch.dtype | None):
        self.layer, self.arguments, self.dtype = layer, arguments, dtype
        weight = next(layer.parameters())
        self.device, self.own_dtype = weight.device, weight.dtype

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the layer; shape, type and device are as before it."""
        with computing_in(self.device, self.dtype):
            output = self.layer(hidden.to(self.device, self.own_dtype), **self.arguments)
        output = output[0] if isinstance(output, tuple) else output
        return output.to(hidden)

    def watch(self, module: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output, and what the module reads on the way, shape `[tokens, features]`, on its device."""
        with _reads_of(module) as seen:
            return self(hidden), seen[0]

    def input_of(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What the module reads when the layer runs, shape `[tokens, features]`, on its device. Runs no further."""
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
    """Hidden states before the first layer of every window, and the other arguments that each layer is called with.

    The states of all windows are kept, so they are in host memory, in `dtype` if there is one, and in one block,
    `[windows, window length, hidden size]`: many would lie among those that are freed, and leave the heap with holes.
    """
    states: torch.Tensor | None = None
    arguments: dict[int, dict[str, Any]] = {}
    seen: list[torch.Tensor] = []

    def watch(index: int):
        def record(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            if index == 0:
                seen.append(inputs[0])
                # All windows are of one length, so their masks and positions are alike: one whole pass is enough.
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
    """Ends a forward pass at the module that was waited for."""

"""Brings the weights of decoder layers to the device that runs them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn

from ..utils.tensors import replace_value


class LayerWeights:
    """Weights of decoder layers, which stay on their device or are brought to it one layer at a time.

    Where they are brought, they are in host memory otherwise: as tensors of their own, or as views of the checkpoint's
    memory-mapped files, which the operating system reads when they are copied. The next layer is copied in the
    background while one runs. Copies may be in another dtype, to compute in.

    Args:
        layers: The decoder layers.
        device: Device to bring the weights of a layer to. `None` if all stay where they are.
        dtype: Dtype of floating-point weights there; their own if `None`.
    """

    def __init__(
        self, layers: Sequence[nn.Module], device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        self.layers, self.device, self.dtype = list(layers), device, dtype
        self._changes: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}

    @property
    def resident(self) -> bool:
        """Whether all layers stay on their device."""
        return self.device is None

    @property
    def offloaded(self) -> bool:
        """Whether weights are elsewhere than on the device while they are not used, and not in another dtype alone."""
        device = self.device
        return device is not None and any(one.device != device for layer in self.layers for one in layer.parameters())

    def change(self, index: int, change: Callable[[], None], forget: Callable[[], None] = lambda: None) -> None:
        """Change the weights of a layer: at once, or whenever they are brought to the device.

        Args:
            index: Index of the layer.
            change: Changes its weights.
            forget: Called when the weights leave the device, to let go of what `change` has made of them.
        """
        if self.resident:
            change()
        else:
            self._changes[index] = change, forget

    def walk(self, backwards: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """Yield the layers with their indices; the weights of each are on the device until the next is asked for."""
        order = list(range(len(self.layers)))
        order = order[::-1] if backwards else order
        if self.resident:
            yield from ((index, self.layers[index]) for index in order)
            return
        with self._background() as background:
            following: Future | None = None
            for place, index in enumerate(order):
                copies = (following or background.submit(self._copy, index)).result()
                following = background.submit(self._copy, order[place + 1]) if place + 1 < len(order) else None
                with self._brought(index, copies) as layer:
                    del copies
                    yield index, layer

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Bring the weights of one layer to the device for the duration of the context."""
        if self.resident:
            yield self.layers[index]
            return
        with self._brought(index, self._copy(index)) as layer:
            yield layer

    def _background(self) -> ThreadPoolExecutor:
        """A thread for copies, on the device of this process: others begin on the first GPU, with a context there."""
        begin = torch.cuda.set_device if self.device.type == "cuda" else None
        return ThreadPoolExecutor(1, initializer=begin, initargs=(self.device,))

    @torch.no_grad()
    def _copy(self, index: int) -> dict[str, torch.Tensor]:
        tensors = self._tensors(index)
        if self.device.type != "cuda":
            return {name: self._to_device(tensor, copy=True) for name, tensor in tensors.items()}
        # On a stream of its own, so that copies don't wait for the layer that runs.
        with torch.cuda.stream(self._stream):
            copies = {name: self._to_device(tensor, non_blocking=True) for name, tensor in tensors.items()}
        self._stream.synchronize()
        return copies

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        # One for all layers: memory is given out again on the stream that it was taken on.
        return torch.cuda.Stream(self.device)

    def _to_device(self, tensor: torch.Tensor, **options: bool) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, **options)

    @contextmanager
    def _brought(self, index: int, copies: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
        layer, originals = self.layers[index], self._tensors(index)
        tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
        change, forget = self._changes.get(index, (lambda: None, lambda: None))
        try:
            for name in list(copies):
                if self.device.type == "cuda":
                    # The next copy may not take its memory before the layer has run.
                    copies[name].record_stream(torch.cuda.current_stream(self.device))
                replace_value(tensors[name], copies.pop(name))
            change()
            yield layer
        finally:
            for name, tensor in originals.items():
                replace_value(tensors[name], tensor)
            forget()

    def _tensors(self, index: int) -> dict[str, torch.Tensor]:
        layer = self.layers[index]
        return {name: tensor.data for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}

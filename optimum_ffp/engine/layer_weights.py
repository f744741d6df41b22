"""Moves the weights of decoder layers to the device that runs them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import nn

from ..utils.tensors import replace_value


class LayerWeights:
    """Weights of decoder layers, which are resident on their device or copied to it one layer at a time.

    Weights that are not resident are in host memory, as ordinary tensors or as views of the memory-mapped checkpoint,
    which is read from disk when they are copied. The next layer is copied in the background while one runs.
    Floating-point copies have the given dtype, to compute in; that of the weights if `None`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        device: torch.device,
        dtype: torch.dtype | None = None,
        resident: bool = False,
    ):
        self.layers, self.device, self.dtype, self.resident = list(layers), device, dtype, resident
        self._changes: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}

    @property
    def offloaded(self) -> bool:
        """Whether weights are on another device while they are not used, rather than only in another dtype."""
        parameters = (one for layer in self.layers for one in layer.parameters())
        return not self.resident and any(one.device != self.device for one in parameters)

    def change(self, index: int, change: Callable[[], None], forget: Callable[[], None] = lambda: None) -> None:
        """Call `change` for the weights of a layer: now if they are resident, or whenever they are on the device.

        `forget` is called when they leave the device, to drop references that `change` created.
        """
        if self.resident:
            change()
        else:
            self._changes[index] = change, forget

    def iter_layers(self, backwards: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """Yield the layers with their indices, each with its weights on the device until the next one."""
        order = sorted(range(len(self.layers)), reverse=backwards)
        if self.resident:
            yield from ((index, self.layers[index]) for index in order)
            return
        # On this process's GPU: by default threads create a context on the first one.
        set_device = partial(torch.cuda.set_device, self.device) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(1, initializer=set_device) as background:
            prefetched: Future | None = None
            for index, following in zip(order, [*order[1:], None]):
                copies = (prefetched or background.submit(self._copy, index)).result()
                prefetched = None if following is None else background.submit(self._copy, following)
                with self.loaded(index, copies) as layer:
                    yield index, layer

    @torch.no_grad()
    def _copy(self, index: int) -> dict[str, torch.Tensor]:
        tensors = self._tensors(index)
        if self.device.type != "cuda":
            return {name: self._to_device(tensor, copy=True) for name, tensor in tensors.items()}
        # On a separate stream, so that copies don't wait for the running layer.
        with torch.cuda.stream(self._stream):
            copies = {name: self._to_device(tensor, non_blocking=True) for name, tensor in tensors.items()}
        self._stream.synchronize()
        return copies

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        # One for all layers: the caching allocator reuses memory per stream.
        return torch.cuda.Stream(self.device)

    def _to_device(self, tensor: torch.Tensor, non_blocking: bool = False, copy: bool = False) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking, copy)

    @contextmanager
    def loaded(self, index: int, copies: dict[str, torch.Tensor] | None = None) -> Iterator[nn.Module]:
        """Keep the weights of one layer on the device for the duration of the context, by default with new copies."""
        layer = self.layers[index]
        if self.resident:
            yield layer
            return
        copies, originals = copies or self._copy(index), self._tensors(index)
        tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
        change, forget = self._changes.get(index, (lambda: None, lambda: None))
        try:
            for name in list(copies):
                if self.device.type == "cuda":
                    # The next copy may not reuse this memory before the layer has run.
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

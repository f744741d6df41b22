"""A causal LM that runs layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..modeling.families import Family, decoder_layers
from ..utils import processes
from ..utils.device_memory import free_device_memory
from ..utils.host_memory import free_host_memory
from ..utils.lm_head import chunked_losses, decode, replaced_forward
from ..utils.precision import computing_in
from ..utils.tensors import replace_value
from .layer_runner import Arguments, LayerRunner
from .layer_weights import LayerWeights
from .token_counter import TokenCounter


# Bytes of hidden states that are kept at once where windows can be taken one after another, or on an accelerator as
# many as have room there, since what is computed per unit serves all of them. With weights that are brought to the
# device once for all of these windows it is a share of the free host memory, if that is more.
RESIDENT_BYTES, OFFLOADED_BYTES, OFFLOADED_SHARE = 2**30, 2**32, 1 / 8
# Free memory of a device, relative to the hidden states that are kept on it.
HEADROOM = 8

# Changes a layer, whose index is given and whose weights are loaded, for the duration of a context. The number of
# layers stands for what follows the last one.
Change = Callable[[int], AbstractContextManager[Any]]


def unchanged(index: int) -> AbstractContextManager[Any]:
    """Leave a layer as it is."""
    return nullcontext()


def hidden_state_bytes(resident: bool, free: int, processes: int, device_free: int | None = None) -> int:
    """Return how many bytes of hidden states a process keeps at once.

    Args:
        resident: Whether all layers stay on their device.
        free: Free bytes of host memory.
        processes: Number of processes that share it.
        device_free: Free bytes on the accelerator; `None` without one.
    """
    if resident:
        return max(RESIDENT_BYTES, (device_free or 0) // (HEADROOM + 1))
    return max(OFFLOADED_BYTES, int(OFFLOADED_SHARE * free) // processes)


class Reached(Exception):
    """Stops a forward pass before the first layer."""


class LayerwiseModel:
    """Runs a causal LM layer by layer: all windows go through a layer before the next.

    Hidden states are on the device if there is room for `HEADROOM` times as many, otherwise in host memory.

    Args:
        model: The model. Its embeddings, last norm and head are on the device.
        family: The family record of the model.
        device: Device to bring the weights of one layer at a time to; `None` if all layers are where they run.
        dtype: Dtype to compute in; that of the weights if `None`. Weights are converted to it while they are used.

    Attributes:
        layers: The decoder layers.
        weights: Their weights.
        device: Device of the embeddings and of the head.
        dtype: Dtype to compute in.
        stored_dtype: Dtype of the weights while they are not used.
        counter: Counts the tokens that the layers read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.model, self.family, self.stored_dtype = model, family, model.dtype
        self.layers = list(decoder_layers(model))
        self.dtype = dtype or model.dtype
        converts = self.dtype != self.stored_dtype
        if converts:
            device = device or model.device
        # Otherwise tensors that are in another dtype than the model, such as some norms, stay in it.
        self.weights = LayerWeights(self.layers, device, self.dtype if converts else None)
        self.device = device or model.device
        self.counter = TokenCounter(len(self.layers))
        self._host_free = free_host_memory()
        # Whether heads and channels were sorted, which is done once and can't be undone.
        self.is_sorted = False
        # What a layer returns, which differs by family and version of transformers.
        self._in_tuple: bool | None = None

    def walk(self, backwards: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """Yield the layers with their indices; the weights of each are loaded until the next is asked for."""
        return self.weights.walk(backwards)

    def runner(self, layer: nn.Module, arguments: Arguments, dtype: torch.dtype | None) -> LayerRunner:
        """Return what runs one of the layers while its weights are loaded."""
        return LayerRunner(layer, arguments, dtype, self.counter)

    @contextmanager
    def ends_loaded(self) -> Iterator[None]:
        """Have the embeddings, last norm and head in the dtype to compute in for the duration of the context."""
        if self.dtype == self.stored_dtype:
            yield
            return
        in_layers = {id(tensor) for layer in self.layers for tensor in (*layer.parameters(), *layer.buffers())}
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors = [one for one in tensors if id(one) not in in_layers and one.dtype == self.stored_dtype]
        originals = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                replace_value(tensor, tensor.data.to(self.dtype))
            yield
        finally:
            for tensor, original in zip(tensors, originals):
                replace_value(tensor, original)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Have all weights on the device, in the dtype to compute in, for the duration of the context."""
        with self.ends_loaded(), ExitStack() as stack:
            for index in range(len(self.layers)):
                stack.enter_context(self.weights.loaded(index))
            yield

    def at_once(self, windows: torch.Tensor, copies: int = 1) -> int:
        """Return how many windows to take through the layers together.

        Args:
            windows: Token ids, shape `[windows, window length]`.
            copies: Number of hidden states that are kept per window and position.
        """
        size = windows.shape[1] * self.model.config.hidden_size * self.dtype.itemsize * copies
        device_free = free_device_memory(self.device)
        budget = hidden_state_bytes(self.weights.resident, self._host_free, processes.local_count(), device_free)
        return max(1, budget // size)

    @torch.no_grad()
    def enter(
        self, windows: torch.Tensor, dtype: torch.dtype | None = None, copies: int = 1, batch_size: int = 1
    ) -> tuple[torch.Tensor, list[Arguments]]:
        """Return the hidden states before the first layer, and the other arguments of every layer.

        Args:
            windows: Token ids, shape `[windows, window length]`.
            dtype: Dtype to keep the states in; `None` for the model's own.
            copies: Number of such states that there will be at once, for the choice of their device.
            batch_size: Windows that are embedded at once.

        Returns:
            States of shape `[windows, window length, hidden size]`, and the arguments by layer. A process without
            windows gets none of either.
        """
        if not len(windows):
            shape = (0, windows.shape[1], self.model.config.hidden_size)
            return torch.empty(shape, dtype=dtype or self.dtype), [Arguments((), {})] * len(self.layers)
        with self.ends_loaded():
            hidden, first = self._reach_first(windows[:1])
            arguments = self._pass_through(windows[:1], hidden, first)
            shape, dtype = (len(windows), *hidden.shape[1:]), dtype or hidden.dtype
            # One tensor, so that the heap is not fragmented.
            states = torch.empty(shape, dtype=dtype, device=self._place(shape, dtype, copies))
            for entered, together in zip(states.split(batch_size), windows.split(batch_size)):
                entered.copy_(self._reach_first(together)[0])
        return states, arguments

    def decoded(self, states: torch.Tensor) -> ModelOutput:
        """Return the output of the decoder, as `decode`, for hidden states after the last layer.

        The ends of the model are loaded (`ends_loaded`).
        """
        with self._skipped_layers(states.to(self.device)) as unread:
            return decode(self.model, unread)

    def logits(self, states: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits for hidden states after the last layer.

        The ends of the model are loaded (`ends_loaded`).

        Args:
            states: Shape `[windows, positions, hidden size]`.
            weights: Tensors to use instead of the model's parameters, by name. They may be in another dtype.

        Returns:
            Shape `[windows, positions, vocabulary]`.
        """
        used = {name: weight.to(self.dtype) for name, weight in weights.items()}
        with self._skipped_layers(states.to(self.device, self.dtype)) as unread:
            return functional_call(self.model, used, (unread,), {"use_cache": False}).logits

    @torch.no_grad()
    def losses(
        self,
        windows: torch.Tensor,
        candidates: Sequence[Change] = (unchanged,),
        dtype: torch.dtype | None = None,
        batch_size: int = 1,
        on_layer: Callable[[], Any] = lambda: None,
    ) -> torch.Tensor:
        """Return the mean negative log-likelihood of every window, in nats per predicted token.

        Args:
            windows: Token ids, shape `[windows, window length]`. The first token of a window is not predicted.
            candidates: Changes of the model to evaluate it with. If weights are brought to the device, all candidates
                go through a layer while it is there.
            dtype: Autocast dtype; `None` for the model's own.
            batch_size: Windows per forward pass.
            on_layer: Called after every layer.

        Returns:
            Losses, float64, shape `[candidates, windows]`.
        """
        if self.weights.resident and len(candidates) > 1:
            one_by_one = [self.losses(windows, [change], dtype, batch_size, on_layer) for change in candidates]
            return torch.cat(one_by_one)
        losses = []
        for together in windows.split(self.at_once(windows, len(candidates))):
            entered, arguments = self.enter(together, copies=len(candidates))
            states = [entered, *(entered.clone() for _ in candidates[1:])]
            for index, layer in self.walk():
                runner = self.runner(layer, arguments[index], dtype)
                for change, of_candidate in zip(candidates, states):
                    with change(index):
                        runner.advance(of_candidate, batch_size)
                on_layer()
            of_candidates = []
            with self.ends_loaded():
                for change, of_candidate in zip(candidates, states):
                    with change(len(self.layers)):
                        of_candidates.append(self._head_losses(of_candidate, together, dtype, batch_size))
            losses.append(torch.stack(of_candidates))
        return torch.cat(losses, 1)

    def _head_losses(
        self, states: torch.Tensor, windows: torch.Tensor, dtype: torch.dtype | None, batch_size: int
    ) -> torch.Tensor:
        with computing_in(self.device, dtype):
            return torch.cat(
                [
                    chunked_losses(self.model, self.decoded(batch), tokens)
                    for batch, tokens in zip(states.split(batch_size), windows.split(batch_size))
                ]
            )

    @contextmanager
    def _skipped_layers(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Have every layer return the given states, and yield token ids of their shape, which nothing depends on."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced_forward(layer, lambda *_, **__: self._returned(states)))
            yield torch.zeros(states.shape[:2], dtype=torch.long, device=self.device)

    def _place(self, shape: tuple[int, ...], dtype: torch.dtype, copies: int) -> torch.device:
        needed = torch.Size(shape).numel() * dtype.itemsize * copies
        free = free_device_memory(self.device)
        return self.device if free is not None and free > HEADROOM * needed else torch.device("cpu")

    def _reach_first(self, window: torch.Tensor) -> tuple[torch.Tensor, Arguments]:
        """Return the hidden states before the first layer, and its other arguments."""
        seen: list[tuple[torch.Tensor, Arguments]] = []

        def stop(hidden: torch.Tensor, *positional: Any, **keywords: Any) -> None:
            seen.append((hidden, Arguments(positional, keywords)))
            raise Reached

        with replaced_forward(self.layers[0], stop), suppress(Reached):
            decode(self.model, window.to(self.device))
        return seen[0]

    def _pass_through(self, window: torch.Tensor, hidden: torch.Tensor, first: Arguments) -> list[Arguments]:
        """Return the arguments of all layers, none of which runs."""
        if self._in_tuple is None:
            with self.weights.loaded(0) as layer:
                output = layer(hidden, *first.positional, **first.keywords)
            self._in_tuple = isinstance(output, tuple)
        arguments: list[Arguments] = []

        def note(hidden: torch.Tensor, *positional: Any, **keywords: Any) -> Any:
            arguments.append(Arguments(positional, keywords))
            return self._returned(hidden)

        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced_forward(layer, note))
            decode(self.model, window.to(self.device))
        return arguments

    def _returned(self, hidden: torch.Tensor) -> Any:
        return (hidden,) if self._in_tuple else hidden

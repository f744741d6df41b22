"""A causal LM that runs layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from ..modeling.families import Family, decoder_layers
from ..utils import processes
from ..utils.device_memory import free_device_memory
from ..utils.host_memory import free_host_memory
from ..utils.lm_head import DecoderOutput, decode, replaced_forward, token_losses
from ..utils.precision import computing_in
from ..utils.tensors import replace_value
from .layer_runner import Arguments, LayerRunner
from .layer_weights import LayerWeights
from .token_counter import TokenCounter


# Bytes of hidden states to keep at once. With resident weights windows can run one after another; an accelerator keeps
# as many as fit, since some work per unit is shared by all of them. Offloaded weights are copied once per chunk of
# windows, so a share of the free host memory is used if that is more.
RESIDENT_BYTES, OFFLOADED_BYTES, OFFLOADED_SHARE = 2**30, 2**32, 1 / 8
# Free memory of a device, relative to the hidden states that are kept on it.
HEADROOM = 8

# Maps the index of a layer whose weights are loaded to a context that changes it. The number of layers stands for the
# modules outside of all layers.
Change = Callable[[int], AbstractContextManager[Any]]


def unchanged(index: int) -> AbstractContextManager[Any]:
    """Change nothing."""
    return nullcontext()


def hidden_state_bytes(resident: bool, free: int, processes: int, device_free: int | None = None) -> int:
    """Return the bytes of hidden states that a process keeps at once, given the free bytes of the host and device."""
    if resident:
        return max(RESIDENT_BYTES, (device_free or 0) // (HEADROOM + 1))
    return max(OFFLOADED_BYTES, int(OFFLOADED_SHARE * free) // processes)


class LayerwiseModel:
    """Runs a causal LM layer by layer: all windows pass a layer before the next.

    Hidden states are on the device if it has free memory for `HEADROOM` times as many, otherwise in host memory.

    Args:
        model: The model. Its embeddings, last norm and head are on the device.
        family: Its family.
        device: Device to copy the weights of one layer at a time to; `None` if all are resident.
        dtype: Dtype to compute in; that of the weights if `None`. Weights are converted to it while they are used.

    Attributes:
        layers: The decoder layers.
        weights: Their weights.
        device: Device of the embeddings and of the head.
        stored_dtype: Dtype of the weights at rest.
        counter: Counts the tokens that the layers read.
        original: The dense model, if this one was pruned before.
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
        self.device = device or model.device
        # Without a conversion, tensors with a dtype of their own, such as some norms, keep it.
        converted = self.dtype if self.dtype != self.stored_dtype else None
        self.weights = LayerWeights(self.layers, self.device, converted, resident=device is None and converted is None)
        self.counter = TokenCounter(len(self.layers))
        self.original: LayerwiseModel | None = None
        self._host_free = free_host_memory()

    @property
    def dense(self) -> "LayerwiseModel":
        """The dense model: this one, unless it was pruned before."""
        return self.original or self

    def iter_layers(self, backwards: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """Yield the layers with their indices, each with its weights loaded until the next one."""
        return self.weights.iter_layers(backwards)

    def runner(self, layer: nn.Module, arguments: Arguments, dtype: torch.dtype | None) -> LayerRunner:
        """Return a runner of one layer, whose weights are loaded."""
        return LayerRunner(layer, arguments, dtype, self.counter)

    @contextmanager
    def cast_outer_weights(self) -> Iterator[None]:
        """Cast the embeddings, last norm and head to the dtype to compute in for the duration of the context."""
        if self.dtype == self.stored_dtype:
            yield
            return
        in_layers = {id(tensor) for layer in self.layers for tensor in (*layer.parameters(), *layer.buffers())}
        tensors = (*self.model.parameters(), *self.model.buffers())
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
        """Keep all weights on the device, in the dtype to compute in, for the duration of the context."""
        with self.cast_outer_weights(), ExitStack() as stack:
            # Weights from disk are on a CPU already, as views of the files.
            if self.weights.offloaded or self.dtype != self.stored_dtype:
                for index in range(len(self.layers)):
                    stack.enter_context(self.weights.loaded(index))
            yield

    def chunk_size(self, windows: torch.Tensor, copies: int = 1) -> int:
        """Return the number of windows to run through the layers together, with so many copies of hidden states."""
        size = windows.shape[1] * self.model.config.hidden_size * self.dtype.itemsize * copies
        device_free = free_device_memory(self.device)
        budget = hidden_state_bytes(self.weights.resident, self._host_free, processes.local_count(), device_free)
        return max(1, budget // size)

    @torch.no_grad()
    def embed(
        self, windows: torch.Tensor, dtype: torch.dtype | None = None, copies: int = 1, batch_size: int = 1
    ) -> tuple[torch.Tensor, list[Arguments]]:
        """Return the hidden states before the first layer, and the other arguments of every layer.

        Both are empty in a process without windows.

        Args:
            windows: Token ids, shape `[windows, window length]`.
            dtype: Dtype to keep the states in; `None` for the model's own.
            copies: Number of such states that will exist at once, to choose their device.
            batch_size: Windows to embed at once.
        """
        if not len(windows):
            shape = (0, windows.shape[1], self.model.config.hidden_size)
            return torch.empty(shape, dtype=dtype or self.dtype), [((), {})] * len(self.layers)
        with self.cast_outer_weights():
            hidden, arguments = self._layer_inputs(windows[:1])
            shape, dtype = torch.Size((len(windows), *hidden.shape[1:])), dtype or hidden.dtype
            free, needed = free_device_memory(self.device), shape.numel() * dtype.itemsize * copies
            device = self.device if free is not None and free > HEADROOM * needed else "cpu"
            # A single tensor doesn't fragment the heap.
            states = torch.empty(shape, dtype=dtype, device=device)
            for embedded, batch in zip(states.split(batch_size), windows.split(batch_size)):
                embedded.copy_(self._layer_inputs(batch)[0])
        return states, arguments

    def _layer_inputs(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        inputs: list[tuple[torch.Tensor, Arguments]] = []

        def record(hidden: torch.Tensor, *positional: Any, **keywords: Any) -> torch.Tensor:
            inputs.append((hidden, (positional, keywords)))
            return hidden

        with self._replaced_layers(record):
            decode(self.model, tokens.to(self.device))
        return inputs[0][0], [arguments for _, arguments in inputs]

    @contextmanager
    def _replaced_layers(self, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced_forward(layer, forward))
            yield

    def decoded(self, states: torch.Tensor) -> DecoderOutput:
        """Return the output of the decoder, as `decode`, for hidden states after the last layer.

        Call it within `cast_outer_weights`, as `logits`.
        """
        states = states.to(self.device)
        with self._replaced_layers(lambda *_, **__: states):
            return decode(self.model, self._placeholder(states))

    def logits(self, states: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits for hidden states after the last layer, shape `[windows, positions, vocabulary]`.

        Args:
            states: Shape `[windows, positions, hidden size]`.
            weights: Tensors to use instead of the model's parameters, by name. They may be in another dtype.
        """
        states = states.to(self.device, self.dtype)
        used = {name: weight.to(self.dtype) for name, weight in weights.items()}
        with self._replaced_layers(lambda *_, **__: states):
            return functional_call(self.model, used, self._placeholder(states), {"use_cache": False}).logits

    def _placeholder(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros(states.shape[:2], dtype=torch.long, device=self.device)

    @torch.no_grad()
    def losses(
        self,
        windows: torch.Tensor,
        candidates: Sequence[Change] = (unchanged,),
        dtype: torch.dtype | None = None,
        batch_size: int = 1,
        on_layer: Callable[[], Any] = lambda: None,
        on_decoded: Callable[[DecoderOutput], Callable[[torch.Tensor], Any] | None] = lambda decoded: None,
    ) -> torch.Tensor:
        """Return mean negative log-likelihoods in nats per predicted token, float64, shape `[candidates, windows]`.

        Args:
            windows: Token ids, shape `[windows, window length]`. The first token of a window has no loss.
            candidates: Changes to evaluate the model with. If weights are offloaded, all candidates run through a
                layer while it is on the device.
            dtype: Autocast dtype; `None` for the model's own.
            batch_size: Windows per forward pass.
            on_layer: Called after every layer.
            on_decoded: As for `window_losses`; for a single candidate.
        """
        if self.weights.resident and len(candidates) > 1:
            return torch.cat([self.losses(windows, [change], dtype, batch_size, on_layer) for change in candidates])
        losses = []
        for chunk in windows.split(self.chunk_size(windows, len(candidates))):
            embedded, arguments = self.embed(chunk, copies=len(candidates))
            candidate_states = [embedded, *(embedded.clone() for _ in candidates[1:])]
            for index, layer in self.iter_layers():
                runner = self.runner(layer, arguments[index], dtype)
                for change, states in zip(candidates, candidate_states):
                    with change(index):
                        runner.advance(states, batch_size)
                on_layer()
            rows = torch.empty(len(candidates), len(chunk), dtype=torch.float64)
            with self.cast_outer_weights():
                for change, states, row in zip(candidates, candidate_states, rows):
                    batches = zip(*(each.split(batch_size) for each in (states, chunk, row)))
                    with change(len(self.layers)), computing_in(self.device, dtype):
                        for hidden, tokens, batch_losses in batches:
                            decoded = self.decoded(hidden)
                            rows_of_batch = token_losses(self.model, decoded, tokens, on_decoded(decoded))
                            batch_losses.copy_(rows_of_batch.mean(1))
            losses.append(rows)
        return torch.cat(losses, 1)

"""Divergence of a model's predictions from those of a baseline."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from ..utils.lm_head import DecoderOutput, chunked_logits, decoder_of


class Predictions:
    """A baseline's predictions for windows, stored as final hidden states and a copy of the head.

    Hidden states are far smaller than logits, and the baseline can be freed before another model is loaded. `head` is
    the copy of the head from its `Predictions` for other windows, if any.
    """

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, head: PreTrainedModel | None = None):
        self.windows = windows
        self.head = head or _without_decoder(model)
        # Output for the last batch; its hidden states are replaced for every other batch.
        self._decoded: DecoderOutput
        self._states: list[torch.Tensor] = []

    def clear(self) -> None:
        """Discard all batches."""
        self._states.clear()

    def append(self, decoded: DecoderOutput) -> None:
        """Store the output of `decode` for a batch in host memory; batches must be in the order of the windows."""
        self._decoded = decoded
        self._states.extend(decoded.last_hidden_state.cpu())

    def comparable(self, model: PreTrainedModel, windows: torch.Tensor) -> bool:
        """Return whether another model has the same vocabulary size and windows."""
        sizes = {each.config.get_text_config().vocab_size for each in (self.head, model)}
        return len(sizes) == 1 and torch.equal(windows, self.windows)

    def logits(self, windows: slice) -> Iterator[torch.Tensor]:
        """Yield the logits of a batch in chunks of positions, shape `[windows, at most POSITIONS, vocabulary]`."""
        states = torch.stack(self._states[windows]).to(self._decoded.last_hidden_state.device)
        for _, logits in chunked_logits(self.head, replace(self._decoded, last_hidden_state=states)):
            yield logits


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a causal LM without the decoder's weights, on the same device."""
    decoder = decoder_of(model)
    # Of the decoder's class, by which the model locates it.
    empty = copy.copy(decoder)
    vars(empty).update(_modules={}, _parameters={}, _buffers={})
    copies = {id(decoder): empty}
    copied = copy.deepcopy(model, copies)
    head = copies[id(model.get_output_embeddings())]
    # Without its embeddings, transformers doesn't find the head.
    copied.get_output_embeddings = lambda: head
    return copied


class Comparison:
    """Accumulates the divergence `KL(baseline ‖ model)` from the baseline's predictions while a model is evaluated."""

    def __init__(self, predictions: Predictions):
        self.predictions = predictions
        # For each batch, chunks of divergence and agreement, shape `[windows, positions, 2]`.
        self._batches: list[list[torch.Tensor]] = []
        self._count = 0

    def begin_batch(self, decoded: DecoderOutput) -> Callable[[torch.Tensor], None]:
        """Return a function for every chunk of logits of a batch, given its output of `decode`.

        Batches must be in the order of the windows.
        """
        first, self._count = self._count, self._count + len(decoded.last_hidden_state)
        chunks, rows = self.predictions.logits(slice(first, self._count)), []
        self._batches.append(rows)

        def compare(logits: torch.Tensor) -> None:
            expected = next(chunks).to(logits.device)
            agreement = logits.argmax(-1) == expected.argmax(-1)
            expected, predicted = (one.float().log_softmax(-1) for one in (expected, logits))
            divergence = kl_div(predicted, expected, reduction="none", log_target=True).sum(-1)
            rows.append(torch.stack([divergence, agreement], -1))

        return compare

    def record(self) -> dict[str, Any]:
        """Return the figures of every window, over its predicted tokens, and their means.

        These are `divergences`, in nats per token, and `agreements`, the fraction of tokens for which both models have
        the same top-1 prediction; the means are `divergence` and `agreement`.
        """
        # The last position of a window has no target. Some devices lack float64.
        rows = torch.cat([torch.cat(chunks, 1)[:, :-1].cpu().double().mean(1) for chunks in self._batches])
        record = {}
        for name, row in zip(("divergence", "agreement"), rows.T):
            record |= {name: float(row.mean()), f"{name}s": row.tolist()}
        return record

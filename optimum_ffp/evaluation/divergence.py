"""How far the predictions of a model are from those of its baseline."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..utils.lm_head import chunked_logits, decoder_of, divergences


class Predictions:
    """What a baseline predicts for windows, as the hidden states that its head reads, and a copy of the head.

    They are far smaller than the predictions, and the baseline itself may be freed before another model is loaded.

    Args:
        model: The baseline, a causal LM.
        windows: Token ids, shape `[windows, window length]`.
        head: The head of its predictions for other windows.
    """

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, head: PreTrainedModel | None = None):
        self.windows = windows
        self.head = head or _without_decoder(model)
        self._decoded: ModelOutput | None = None
        self._states: list[torch.Tensor] = []

    def clear(self) -> None:
        """Forget all batches, to begin again."""
        self._states.clear()

    def keep(self, decoded: ModelOutput) -> None:
        """Keep the output of `decode` for a batch in host memory; batches come in the order of the windows."""
        self._decoded = decoded
        self._states.extend(decoded.last_hidden_state.cpu())

    def fit(self, model: PreTrainedModel, windows: torch.Tensor) -> bool:
        """Return whether another model predicts the same tokens of the same windows."""
        sizes = {one.config.get_text_config().vocab_size for one in (self.head, model)}
        return len(sizes) == 1 and torch.equal(windows, self.windows)

    def logits(self, windows: slice) -> Iterator[torch.Tensor]:
        """Yield the logits of a batch, `[windows, at most POSITIONS, vocabulary]`: a piece of every window at once."""
        states = torch.stack(self._states[windows]).to(self._decoded.last_hidden_state.device)
        for _, logits in chunked_logits(self.head, replace(self._decoded, last_hidden_state=states)):
            yield logits


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a causal LM with its head alone, on the same device."""
    decoder = decoder_of(model)
    # Of the decoder's class, by which the model finds it.
    empty = copy.copy(decoder)
    vars(empty).update(_modules={}, _parameters={}, _buffers={})
    return copy.deepcopy(model, {id(decoder): empty})


class Comparison:
    """Divergence of a model's predictions from those of its baseline, `KL(baseline ‖ model)`, while it is evaluated.

    Args:
        predictions: Those of the baseline.
    """

    def __init__(self, predictions: Predictions):
        self.predictions = predictions
        # Of each batch, its pieces: by window, then by position.
        self._divergences: list[list[torch.Tensor]] = []
        self._agreements: list[list[torch.Tensor]] = []
        self._count = 0

    def read(self, decoded: ModelOutput) -> Callable[[torch.Tensor], None]:
        """Begin a batch; batches come in the order of the windows.

        Args:
            decoded: Output of `decode` for the batch.

        Returns:
            A function that takes the model's logits, a piece of every window at a time as `chunked_logits` yields
            them.
        """
        first, self._count = self._count, self._count + len(decoded.last_hidden_state)
        pieces = self.predictions.logits(slice(first, self._count))
        self._divergences.append([])
        self._agreements.append([])

        def compare(logits: torch.Tensor) -> None:
            expected = next(pieces).to(logits.device)
            self._divergences[-1].append(divergences(expected, logits))
            self._agreements[-1].append(logits.argmax(-1) == expected.argmax(-1))

        return compare

    def record(self) -> dict[str, Any]:
        """Return the means over windows and the figures of every window.

        Returns:
            `divergence`, in nats per token, and `agreement`, the share of tokens of which both models find the same
            one most likely; `divergences` and `agreements` of every window, of the tokens that its loss is of.
        """
        record = {}
        for name, batches in (("divergence", self._divergences), ("agreement", self._agreements)):
            # Nothing follows the last position of a window. Some devices have no float64.
            rows = torch.cat([torch.cat(pieces, 1)[:, :-1].cpu().double().mean(1) for pieces in batches])
            record |= {name: float(rows.mean()), f"{name}s": rows.tolist()}
        return record

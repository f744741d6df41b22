"""How far the predictions of a model are from those of its baseline."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..utils.lm_head import decoder_of, divergences, logits_in_pieces


class Predictions:
    """What a baseline predicts for windows, as the hidden states that its head reads, and a copy of the head.

    They are far smaller than the predictions, and the baseline itself may be freed before another model is loaded.

    Args:
        model: The baseline, a causal LM.
        windows: Token ids, shape `[windows, window length]`.
        others: What it predicts for other windows, with a copy of the head already.
    """

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, others: "Predictions | None" = None):
        self.windows = windows
        self.model = _without_decoder(model) if others is None else others.model
        self._decoded: ModelOutput | None = None
        self._states: list[torch.Tensor] = []

    def keep(self, decoded: ModelOutput) -> None:
        """Keeps a batch in host memory; batches come in the order of the windows.

        Args:
            decoded: Output of `decode` for the batch.
        """
        self._decoded = decoded
        self._states.extend(decoded.last_hidden_state.cpu())

    def fit(self, model: PreTrainedModel, windows: torch.Tensor) -> bool:
        """Whether another model predicts the same tokens of the same windows.

        Args:
            model: A causal LM.
            windows: Token ids, shape `[windows, window length]`.
        """
        sizes = {one.config.get_text_config().vocab_size for one in (self.model, model)}
        return len(sizes) == 1 and torch.equal(windows, self.windows)

    def logits(self, windows: slice) -> Iterator[torch.Tensor]:
        """Logits of a batch, a piece of every window at a time.

        Args:
            windows: The windows of the batch.

        Yields:
            Logits, shape `[windows, at most POSITIONS, vocabulary]`.
        """
        states = torch.stack(self._states[windows]).to(self._decoded.last_hidden_state.device)
        for _, logits in logits_in_pieces(self.model, replace(self._decoded, last_hidden_state=states)):
            yield logits


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a causal LM with its head alone, on the same device."""
    decoder = decoder_of(model)
    # Of the decoder's class, by which the model finds it.
    emptied = copy.copy(decoder)
    vars(emptied).update(_modules={}, _parameters={}, _buffers={})
    kept = {id(decoder): emptied}
    for hook in (getattr(module, "_hf_hook", None) for module in model.modules()):
        # Accelerate's, with the offloaded weights of all layers.
        offloaded = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", (hook,))]
        kept |= {id(weights): weights for weights in offloaded if weights is not None}
    return copy.deepcopy(model, kept)


class Comparison:
    """Divergence of a model's predictions from those of its baseline, `KL(baseline ‖ model)`, while it is evaluated.

    Args:
        predictions: Those of the baseline.
    """

    def __init__(self, predictions: Predictions):
        self.predictions = predictions
        # By window of a batch, then by position, of each piece of each batch.
        self._divergences: list[list[torch.Tensor]] = []
        self._agreements: list[list[torch.Tensor]] = []
        self._read = 0

    def read(self, decoded: ModelOutput) -> Callable[[torch.Tensor], None]:
        """Begins a batch; batches come in the order of the windows.

        Args:
            decoded: Output of `decode` for the batch.

        Returns:
            A function that takes the model's logits, a piece of every window at a time as `logits_in_pieces` yields
            them.
        """
        first, self._read = self._read, self._read + len(decoded.last_hidden_state)
        pieces = self.predictions.logits(slice(first, self._read))
        by_position, agreements = [], []
        self._divergences.append(by_position)
        self._agreements.append(agreements)

        def compare(logits: torch.Tensor) -> None:
            wanted = next(pieces).to(logits.device)
            agreements.append(logits.argmax(-1) == wanted.argmax(-1))
            by_position.append(divergences(wanted, logits))

        return compare

    def record(self) -> dict[str, Any]:
        """The means over windows and the figures of every window.

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

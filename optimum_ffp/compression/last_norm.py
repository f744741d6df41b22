"""Fit of the norm after the last layer to what the dense model predicts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers.modeling_outputs import ModelOutput

from ..engine import LayerwiseModel, graphs_freed
from ..utils.lm_head import POSITIONS, chunked_logits, head_in_autocast_dtype
from ..utils.precision import computing_in


def last_norm_parameters(layerwise: LayerwiseModel) -> dict[str, torch.Tensor]:
    """Return the parameters of the norm after the last layer by their name in the model; none if there is no norm."""
    in_layers = {id(parameter) for layer in layerwise.layers for parameter in layer.parameters()}
    # The only vectors outside of the layers.
    return {
        name: parameter.detach()
        for name, parameter in layerwise.model.named_parameters()
        if parameter.ndim == 1 and id(parameter) not in in_layers
    }


class PredictionLoss:
    """Divergence of a pruned model's predictions from the dense model's, a `Loss` of the last norm.

    The mean of `KL(p ‖ q)`, in nats, over every n-th position of a window, at most `POSITIONS` of them, where `p` and
    `q` are the distributions of the next token by the dense model and by the pruned one.

    Args:
        layerwise: The dense model.
        pruned: Hidden states of the pruned model after the last layer, of this process's windows. Shape `[windows,
            window length, hidden size]`.
        dense: Those of the dense model, which `ready` replaces by what the head reads.
        numbers: Number of each window among those of all processes. The first position that is read depends on it.
        dtype: Autocast dtype; `None` for the model's own.

    Attributes:
        scale: Factor with which gradients fit into float16.
    """

    def __init__(
        self,
        layerwise: LayerwiseModel,
        pruned: torch.Tensor,
        dense: torch.Tensor,
        numbers: Sequence[int],
        dtype: torch.dtype | None,
    ):
        self.layerwise, self.pruned, self.dense, self.numbers = layerwise, pruned, dense, numbers
        self.dtype, self.every = dtype, _step(pruned.shape[1])
        self.scale = pruned.shape[1] // self.every
        # Output of the dense decoder for one window, whose hidden states are replaced.
        self._decoded: ModelOutput | None = None

    def __call__(self, weights: Mapping[str, torch.Tensor], window: int) -> torch.Tensor:
        """Return the loss with given weights on a window of this process, by its index."""
        read = slice(window, window + 1), slice(self.numbers[window] % self.every, None, self.every)
        found = self.layerwise.logits(self.pruned[read], weights)
        with torch.no_grad():
            decoded = replace(self._decoded, last_hidden_state=self.dense[read].to(found.device))
            # Few enough for one piece.
            ((_, target),) = chunked_logits(self.layerwise.model, decoded)
        found, target = (log_softmax(logits[0].float(), -1) for logits in (found, target))
        return kl_div(found, target, reduction="batchmean", log_target=True)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Run the dense model's norm once, and have the head where it is used for the duration of the context."""
        layerwise, computing = self.layerwise, computing_in(self.layerwise.device, self.dtype)
        with (
            layerwise.ends_loaded(),
            graphs_freed(),
            computing,
            head_in_autocast_dtype(layerwise.model, layerwise.device),
        ):
            projected = []
            with torch.no_grad():
                for states in self.dense.split(1) if len(self.dense) else ():
                    self._decoded = layerwise.decoded(states.to(layerwise.dtype))
                    read = self._decoded.last_hidden_state
                    if read.shape == states.shape:
                        states.copy_(read)
                    else:
                        # OPT-350m has a projection between the layers and the head.
                        projected.append(read.to(states))
            if projected:
                self.dense = torch.cat(projected)
            yield


def _step(length: int) -> int:
    """Return how many positions apart those that are read of a window are."""
    return math.ceil(length / POSITIONS)

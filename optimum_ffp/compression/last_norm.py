"""Fit of the norm after the last layer to what the dense model predicts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import kl_div, log_softmax

from ..engine import LayerwiseModel, graphs_freed
from ..options import GRADIENT_COST
from ..utils.lm_head import POSITIONS, cast_once
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
        dense: Those of the dense model.
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
        self.dtype, self.every = dtype, math.ceil(pruned.shape[1] / POSITIONS)
        self.scale = pruned.shape[1] // self.every

    def __call__(self, weights: Mapping[str, torch.Tensor], window: int) -> torch.Tensor:
        """Return the loss with given weights on a window of this process, by its index."""
        read = window, slice(self.numbers[window] % self.every, None, self.every)
        found = self._log_probabilities(self.pruned[read], weights)
        with torch.no_grad():
            target = self._log_probabilities(self.dense[read])
        return kl_div(found, target, reduction="batchmean", log_target=True)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have what is not trained where it is used, and in its dtype, for the duration of the context."""
        layerwise, computing = self.layerwise, computing_in(self.layerwise.device, self.dtype)
        with layerwise.ends_loaded(), graphs_freed(), computing, cast_once(layerwise.model):
            yield

    def _log_probabilities(
        self, states: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        return log_softmax(self.layerwise.logits(states[None], weights)[0].float(), -1)


def prediction_tokens(windows: int, held_out: int, length: int, passes: float, share: float) -> int:
    """Return the tokens of the fit of the last norm in forward passes of the model.

    Args:
        windows: Number of windows to train on.
        held_out: Number of held-out windows.
        length: Window length.
        passes: Number of passes over the windows.
        share: Share of the head in a forward pass (`head_share`).
    """
    positions = math.ceil(length / math.ceil(length / POSITIONS))
    # The head runs on states of both models, and back on those of the pruned one.
    return round(share * positions * (passes * (1 + GRADIENT_COST) * windows + (1 + passes) * 2 * held_out))

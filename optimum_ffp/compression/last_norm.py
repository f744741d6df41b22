"""Training of the norm after the last layer to match the predictions of the dense model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.nn.functional import kl_div

from ..engine import LayerwiseModel, free_graphs
from ..utils.lm_head import POSITIONS, DecoderOutput, chunked_logits, head_in_autocast_dtype
from ..utils.precision import computing_in


def last_norm_parameters(layerwise: LayerwiseModel) -> dict[str, torch.Tensor]:
    """Return the parameters of the norm after the last layer by their name in the model; none if there is no norm."""
    in_layers = {id(parameter) for layer in layerwise.layers for parameter in layer.parameters()}
    # Its parameters are the only vectors outside of the layers.
    return {
        name: parameter.detach()
        for name, parameter in layerwise.model.named_parameters()
        if parameter.ndim == 1 and id(parameter) not in in_layers
    }


class PredictionLoss:
    """Divergence of a pruned model's predictions from the dense model's, a `Loss` for the last norm.

    The mean of `KL(p ‖ q)`, in nats, over every n-th position of a window, at most `POSITIONS` of them, where `p` and
    `q` are the next-token distributions of the dense and of the pruned model.

    `pruned` and `dense` are the hidden states of this process's windows after the last layer, shape `[windows, window
    length, hidden size]`; `ready` replaces those of the dense model by the input of the head. The index of a window
    among those of all processes sets the first position that is read. `dtype` is that of autocast, if any.
    """

    def __init__(
        self,
        layerwise: LayerwiseModel,
        pruned: torch.Tensor,
        dense: torch.Tensor,
        window_indices: Sequence[int],
        dtype: torch.dtype | None,
    ):
        self.layerwise, self.pruned, self.dense = layerwise, pruned, dense
        self.window_indices, self.dtype = window_indices, dtype
        self.stride = math.ceil(pruned.shape[1] / POSITIONS)
        self.scale = pruned.shape[1] // self.stride
        # Output of the dense decoder for one window; its hidden states are replaced for every other window.
        self._decoded: DecoderOutput

    def __call__(self, weights: Mapping[str, torch.Tensor], window: int) -> torch.Tensor:
        """Return the loss with given weights on one of this process's windows."""
        positions = slice(self.window_indices[window] % self.stride, None, self.stride)
        logits = self.layerwise.logits(self.pruned[window : window + 1, positions], weights)
        with torch.no_grad():
            states = self.dense[window : window + 1, positions].to(logits.device)
            # At most `POSITIONS` positions are a single piece.
            ((_, target),) = chunked_logits(self.layerwise.model, replace(self._decoded, last_hidden_state=states))
        predicted, target = (one.float().log_softmax(-1) for one in (logits, target))
        return kl_div(predicted, target, reduction="none", log_target=True).sum(-1).mean()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Apply the dense model's norm once, and keep the head on its device for the duration of the context."""
        layerwise, device = self.layerwise, self.layerwise.device
        cast_head = head_in_autocast_dtype(layerwise.model, device)
        with layerwise.cast_outer_weights(), free_graphs(), computing_in(device, self.dtype), cast_head:
            with torch.no_grad():
                for states in self.dense.split(1) if len(self.dense) else ():
                    self._decoded = layerwise.decoded(states.to(layerwise.dtype))
                    states.copy_(self._decoded.last_hidden_state)
            yield

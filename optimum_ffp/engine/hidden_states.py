"""Hidden states of windows, and of shorter sequences of their tokens, on their way through the layers."""

from collections.abc import Sequence

import torch
from torch import nn

from .layer_runner import LayerRunner
from .layerwise_model import LayerwiseModel


class HiddenStates:
    """Hidden states between two layers, of sequences of one or several lengths as `with_first_tokens` returns them.

    `autocast` is the autocast dtype, if any; `dtype` and `copies` are as for `LayerwiseModel.embed`.

    Attributes:
        states: By length, shape `[windows, sequences per window, length, hidden size]`.
    """

    def __init__(
        self,
        layerwise: LayerwiseModel,
        sequences: Sequence[torch.Tensor],
        autocast: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        copies: int = 1,
    ):
        self.layerwise, self.autocast, self.states, self._arguments = layerwise, autocast, [], []
        for tokens in sequences:
            states, arguments = layerwise.embed(tokens.flatten(0, 1), dtype, copies, batch_size=tokens.shape[1])
            self.states.append(states.unflatten(0, tokens.shape[:2]))
            self._arguments.append(arguments)

    def runners(self, layer: nn.Module, index: int) -> list[LayerRunner]:
        """Return a runner by length of the layer of an index, whose weights are loaded."""
        return [self.layerwise.runner(layer, arguments[index], self.autocast) for arguments in self._arguments]

    def advance(self, layer: nn.Module, index: int, tokens: int | None = None) -> None:
        """Replace the states before the layer of an index, whose weights are loaded, with those after it.

        By default, a forward pass has the sequences of one length of a window; otherwise this number of tokens.
        """
        for runner, states in zip(self.runners(layer, index), self.states):
            _, sequences, length, _ = states.shape
            runner.advance(states.flatten(0, 1), tokens // length if tokens else sequences)

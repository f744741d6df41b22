"""Counts the tokens that a model reads."""

from collections.abc import Callable
from typing import Any

import torch

from ..utils import processes
from ..utils.resume import Journal


# Name of the count among the tensors of a journal's entry.
READ = "layer_tokens"


class TokenCounter:
    """Counts tokens in forward passes through all layers; the head alone doesn't count.

    A backward pass counts as one forward pass where the weights are frozen, and as two where they are trained.

    A finished result is saved with the count at its end. A run that is resumed goes on from there, and so counts as
    much as one that was not interrupted.

    Args:
        layers: Number of layers.

    Attributes:
        layer_tokens: Tokens that have been read, times the layers that have read each.
    """

    def __init__(self, layers: int):
        self.layers, self.layer_tokens = layers, 0

    @property
    def tokens(self) -> float:
        """Tokens that this process has read."""
        return self.layer_tokens / self.layers

    def value(self, journal: Journal, name: str, compute: Callable[[], Any]) -> Any:
        """Return the value of a journal's entry, as `Journal.value`."""
        entry = journal.value(name, lambda: [compute(), self.layer_tokens])
        self.layer_tokens = max(self.layer_tokens, entry[1])
        return entry[0]

    def tensors(
        self, journal: Journal, name: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors of a journal's entry, as `Journal.tensors`."""
        entry = journal.tensors(name, lambda: compute() | {READ: torch.tensor(self.layer_tokens)})
        self.layer_tokens = max(self.layer_tokens, int(entry.pop(READ)))
        return entry


def of_all_processes(tokens: float) -> int:
    """Return the sum of the tokens of all processes, which call this together."""
    return round(float(processes.sum_(torch.tensor(tokens, dtype=torch.float64))))

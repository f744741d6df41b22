"""Counter of the tokens that a model reads."""

from collections.abc import Callable
from typing import Any

import torch

from ..utils import processes
from ..utils.resume import Journal


# Name of the count among the tensors of a journal entry.
READ = "layer_tokens"


class TokenCounter:
    """Counts tokens in forward passes through the layers; the head doesn't count.

    A backward pass counts as one forward pass if the weights are frozen, and as two if they are trained.

    Every journal entry stores the count after it. A resumed run continues from there, so that its count equals that of
    an uninterrupted one. `layer_tokens` is the count summed over layers.
    """

    def __init__(self, layers: int):
        self.layers, self.layer_tokens = layers, 0

    @property
    def tokens(self) -> float:
        """Number of tokens that this process has read."""
        return self.layer_tokens / self.layers

    def add(self, tokens: float) -> None:
        """Count tokens that this process has read outside of the layer-wise engine, in forward passes."""
        self.layer_tokens += round(self.layers * tokens)

    def value(self, journal: Journal, name: str, compute: Callable[[], Any]) -> Any:
        """Return the value of a journal entry, as `Journal.value` does."""
        result, read = journal.value(name, lambda: [compute(), self._read_by_all()])
        self._continue_from(read)
        return result

    def tensors(
        self, journal: Journal, name: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors of a journal entry, as `Journal.tensors` does."""
        entry = journal.tensors(name, lambda: compute() | {READ: torch.tensor(self._read_by_all())})
        self._continue_from(int(entry.pop(READ)))
        return entry

    def _read_by_all(self) -> int:
        """Return the count if all processes have read as much; a run may resume with another number of them."""
        return self.layer_tokens * processes.count()

    def _continue_from(self, read: int) -> None:
        self.layer_tokens = max(self.layer_tokens, read // processes.count())


def total_tokens(tokens: float) -> int:
    """Return the sum of the tokens of all processes; a collective call."""
    return round(float(processes.sum_(torch.tensor(tokens, dtype=torch.float64))))

"""Counter of the tokens that a model reads."""

import torch

from ..utils import processes


class TokenCounter:
    """Counts tokens in forward passes through the layers; the head doesn't count.

    A backward pass counts as one forward pass if the weights are frozen, and as two if they are trained.

    A journal saves the count with every result. A resumed run continues from there, so that its count equals that of
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


def total_tokens(tokens: float) -> int:
    """Return the sum of the tokens of all processes; a collective call."""
    return round(float(processes.sum_(torch.tensor(tokens, dtype=torch.float64))))

"""Perplexity as an `evaluate.Metric`."""

import datasets
import evaluate
import torch
from transformers import PreTrainedModel

from .perplexity import describe_losses, window_losses


class Perplexity(evaluate.Metric):
    """`exp` of the mean loss over all predicted tokens of fixed windows, for a model in memory.

    Example:
        >>> Perplexity().compute(predictions=windows.tolist(), model=model)
        {'perplexity': ..., 'loss': ..., 'losses': [...], 'windows': ..., 'window_length': ...}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of a causal LM over non-overlapping windows of tokens.",
            citation="",
            inputs_description="predictions: windows of token ids, all of one length; model: the causal LM.",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]  # A metric declares the arguments that it takes.
        self,
        predictions: list[list[int]],
        model: PreTrainedModel,
        batch_size: int = 1,
    ) -> dict[str, float | int | list[float]]:
        windows = torch.as_tensor(predictions)
        count, length = windows.shape
        figures = describe_losses(window_losses(model, windows, batch_size))
        return figures | {"windows": count, "window_length": length}

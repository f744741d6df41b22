"""Perplexity and divergence of calibrated weights on the held-out windows, by which a stage of calibration is kept."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from ..allocation.policy import PruningPolicy
from ..evaluation import to_perplexity
from ..evaluation.divergence import Comparison, Predictions
from ..utils import processes
from ..utils.resume import Journal
from .sorted_model import SortedModel


def held_out_figures(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    candidates: Sequence[Mapping[str, torch.Tensor]],
    windows: torch.Tensor,
    dtype: torch.dtype | None,
    journal: Journal,
) -> list[dict[str, float]]:
    """Measure a policy with several sets of weights, layer by layer.

    Args:
        sorted_model: The sorted model.
        policy: Number of groups to keep per unit.
        candidates: Sets of weights that replace those of the policy, by name.
        windows: Token ids, shape `[windows, window length]`.
        dtype: Autocast dtype of the layers; `None` for the model's own.
        journal: Saves the figures.

    Returns:
        For each set the `perplexity`, and the divergence from the dense model as `kl`, in nats per token.
    """

    def measure() -> list[dict[str, float]]:
        share = windows[processes.share(len(windows))]
        rows = torch.zeros(len(candidates), len(share), 2, dtype=torch.float64)
        if len(share):
            losses = partial(sorted_model.layerwise.losses, share, dtype=dtype)
            with sorted_model.layerwise.cast_outer_weights():
                predictions = Predictions(sorted_model.model, share)
            losses(on_decoded=predictions.append)
            for row, weights in zip(rows, candidates):
                comparison = Comparison(predictions)
                row[:, 0] = losses([sorted_model.change(policy, weights)], on_decoded=comparison.begin_batch)[0]
                row[:, 1] = torch.tensor(comparison.record()["divergences"])
        means = [processes.gather(row).mean(0).tolist() for row in rows]
        return [{"perplexity": to_perplexity(loss), "kl": divergence} for loss, divergence in means]

    return sorted_model.layerwise.counter.value(journal, "held-out", measure)

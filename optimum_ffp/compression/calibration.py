"""Result of a calibration, and which of its stages is kept."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..allocation.policy import PruningPolicy
from ..config import FFPConfig
from ..data import Windows
from ..evaluation import to_perplexity
from ..evaluation.divergence import Comparison, Predictions
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.resume import Journal
from .sorted_model import SortedModel


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Calibrated weights.

    Attributes:
        weights: Weights by the parameter's name, or `None` without calibration.
        record: If there was training: the perplexity and the divergence from the dense model on held-out windows
            after every stage, `stages`; the stage whose weights were `kept`; and errors of the training.
    """

    weights: dict[str, torch.Tensor] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def followed_by(
        self,
        stage: str,
        weights: dict[str, torch.Tensor],
        sorted_model: SortedModel,
        policy: PruningPolicy,
        held_out: Windows,
        config: FFPConfig,
        journal: Journal,
    ) -> "Calibration":
        """Return the result of a further stage, whose weights are kept if they lower the held-out perplexity.

        Args:
            stage: Name of the stage.
            weights: Weights after the stage.
            sorted_model: The sorted model.
            policy: Number of groups to keep per unit.
            held_out: Windows to measure perplexity and divergence on; a stage before this one did for its weights.
            config: Options.
            journal: Saves the figures.
        """
        layerwise, stages = sorted_model.layerwise, self.record.get("stages", [])
        candidates = [weights] if stages else [self.weights, weights]

        def measure() -> list[dict[str, float]]:
            share = held_out.tokens[processes.share(len(held_out))]
            rows = torch.zeros(len(candidates), len(share), 2, dtype=torch.float64)
            if len(share):
                dtype, dense = autocast_dtype(layerwise.model, config.search_dtype), layerwise.dense
                with dense.cast_outer_weights():
                    predictions = Predictions(dense.model, share)
                dense.losses(share, dtype=dtype, on_decoded=predictions.append)
                for row, candidate in zip(rows, candidates):
                    comparison = Comparison(predictions)
                    changes = [sorted_model.change(policy, candidate)]
                    row[:, 0] = layerwise.losses(share, changes, dtype, on_decoded=comparison.begin_batch)[0]
                    row[:, 1] = torch.tensor(comparison.record()["divergences"])
            means = [processes.gather(row).mean(0).tolist() for row in rows]
            return [{"perplexity": to_perplexity(loss), "kl": divergence} for loss, divergence in means]

        *measured, after = layerwise.counter.value(journal, f"held-out-{stage}", measure)
        record = {"kept": "ridge"} | self.record | held_out.describe()
        record["stages"] = [*stages, *({"stage": "ridge"} | one for one in measured), {"stage": stage} | after]
        before = next(one for one in record["stages"] if one["stage"] == record["kept"])
        if is_improvement(f"calibration {stage}", before, after):
            return Calibration(weights, record | {"kept": stage})
        return Calibration(self.weights, record)


def is_improvement(training: str, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Return whether a training lowers the perplexity on held-out windows; log it and the divergence."""
    is_lower, is_closer = (after[name] < before[name] for name in ("perplexity", "kl"))
    logger.log(
        logging.INFO if is_lower == is_closer else logging.WARNING,
        f"{training} is {'kept' if is_lower else 'discarded'}: on held-out windows, perplexity "
        f"{before['perplexity']:.2f} -> {after['perplexity']:.2f}, divergence {before['kl']:.4f} -> {after['kl']:.4f} "
        f"nats per token{'' if is_lower == is_closer else '; perplexity decides'}",
    )
    return is_lower

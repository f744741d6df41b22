"""Input and result of a calibration, and which of its stages is kept."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy
from ..data import DataSplits
from ..evaluation import to_perplexity
from ..evaluation.divergence import Comparison, Predictions
from ..plan import Plan
from ..utils import processes
from ..utils.precision import autocast_dtype, computing_in, convert
from ..utils.resume import Journal
from ..vocabulary.trimmed import TrimmedVocabulary
from .sorted_model import SortedModel
from .training.loss import DistillationLoss


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


@dataclass(frozen=True)
class CalibrationTask:
    """Input of a calibration: model, policy, windows of all roles, options, and a journal that saves finished work.

    With a trimmed `vocabulary`, the model that is trained as a whole has its tokens. Layers run with all tokens.
    """

    sorted_model: SortedModel
    policy: PruningPolicy
    data: DataSplits
    plan: Plan
    journal: Journal
    vocabulary: TrimmedVocabulary | None = None

    def slice(self, weights: Mapping[str, torch.Tensor] | None) -> PreTrainedModel:
        """Return the pruned model with these weights, by name."""
        return self.sorted_model.slice(self.policy, weights, vocabulary=self.vocabulary)

    def conclude(self, stage: str, before: Calibration, weights: dict[str, torch.Tensor]) -> Calibration:
        """Return the result of a stage, whose weights are kept if they lower the held-out divergence from `before`."""
        layerwise, stages, held_out = self.sorted_model.layerwise, before.record.get("stages", []), self.data.held_out
        is_trimmed = stage == "model" and self.vocabulary is not None
        candidates = [weights] if stages and not is_trimmed else [before.weights, weights]

        def measure() -> list[dict[str, float]]:
            share = held_out.tokens[processes.share(len(held_out))]
            rows = torch.zeros(len(candidates), len(share), 2, dtype=torch.float64)
            if is_trimmed and len(share):
                for row, candidate in zip(rows, candidates):
                    row.copy_(self._compare_trimmed(candidate, share))
            elif len(share):
                dtype, dense = autocast_dtype(layerwise.model, self.plan.search_dtype), layerwise.dense
                with dense.cast_outer_weights():
                    predictions = Predictions(dense.model, share)
                dense.losses(share, dtype=dtype, on_decoded=predictions.append)
                for row, candidate in zip(rows, candidates):
                    comparison = Comparison(predictions)
                    changes = [self.sorted_model.change(self.policy, candidate)]
                    row[:, 0] = layerwise.losses(share, changes, dtype, on_decoded=comparison.begin_batch)[0]
                    row[:, 1] = torch.tensor(comparison.record()["divergences"])
            means = [processes.gather(row).mean(0).tolist() for row in rows]
            return [{"perplexity": to_perplexity(loss), "kl": divergence} for loss, divergence in means]

        *measured, after = self.journal.value(f"calibration-held-out-{stage}", measure)
        first = "ridge" if self.sorted_model.ridges else "none"
        record = {"kept": first} | before.record | held_out.describe()
        if is_trimmed:
            record["kept"] = first = "vocabulary"
        record["stages"] = [*stages, *({"stage": first} | one for one in measured), {"stage": stage} | after]
        kept = next(one for one in record["stages"] if one["stage"] == record["kept"])
        if is_improvement(f"calibration {stage}", kept, after):
            return Calibration(weights, record | {"kept": stage})
        return Calibration(before.weights, record)

    @torch.no_grad()
    def _compare_trimmed(self, weights: Mapping[str, torch.Tensor] | None, windows: torch.Tensor) -> torch.Tensor:
        """Return loss and divergence of the model with a trimmed vocabulary on windows, shape `[windows, 2]`."""
        dense = self.sorted_model.layerwise.dense
        model = convert(self.slice(weights), dense.model.dtype, dense.device)
        with dense.loaded(), computing_in(dense.device, autocast_dtype(dense.model, self.plan.search_dtype)):
            loss = DistillationLoss(model, dense.model, vocabulary=self.vocabulary)
            rows = [loss(window[None].to(dense.device))["measured"] for window in windows]
        self.sorted_model.layerwise.counter.add(2 * windows.numel())
        return torch.cat(rows)[:, [2, 1]]


def is_improvement(training: str, before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Return whether a training lowers the divergence from the dense model on held-out windows; log the figures."""
    # The perplexity also falls if a model adapts to a small text and forgets the rest.
    is_closer = after["kl"] < before["kl"]
    logger.info(
        f"{training} is {'kept' if is_closer else 'discarded'}: on held-out windows, divergence "
        f"{before['kl']:.4f} -> {after['kl']:.4f} nats per token, perplexity {before['perplexity']:.2f} -> "
        f"{after['perplexity']:.2f}"
    )
    return is_closer

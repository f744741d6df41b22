"""Result of a calibration."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Calibrated weights.

    Attributes:
        stage: The stage that they come from: `none`, `ridge`, `layers` or `model`.
        weights: Weights by the parameter's name, or `None` without calibration.
        record: Figures on held-out windows, if stages were compared: `stages`, with the `perplexity` and the
            divergence, `kl`, after every `stage`; the one that was `kept`; the errors of training.
    """

    stage: str
    weights: dict[str, torch.Tensor] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def followed_by(
        self,
        stage: str,
        weights: dict[str, torch.Tensor],
        before: Mapping[str, float],
        after: Mapping[str, float],
        record: Mapping[str, Any],
    ) -> "Calibration":
        """Return the result of a further stage, whose weights are kept if they lower the perplexity.

        Args:
            stage: Name of the stage.
            weights: Weights after it.
            before: Figures on the held-out windows before it.
            after: Figures on the held-out windows after it.
            record: Further entries for the record.
        """
        is_better = after["perplexity"] < before["perplexity"]
        agrees = is_better == (after["kl"] < before["kl"])
        logger.log(
            logging.INFO if agrees else logging.WARNING,
            "%s %s; on held-out windows %s%s",
            stage,
            "kept" if is_better else "discarded",
            describe_change(before, after),
            "" if agrees else " (they disagree, and perplexity decides)",
        )
        stages = [*self.record.get("stages", [{"stage": self.stage} | before]), {"stage": stage} | after]
        kept = stage if is_better else self.stage
        figures = {"stages": stages, "kept": kept}
        return Calibration(kept, weights if is_better else self.weights, self.record | record | figures)


def describe_change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Format the perplexity and the divergence on held-out windows before and after a stage."""
    return (
        f"perplexity {before['perplexity']:.2f} -> {after['perplexity']:.2f}, "
        f"divergence {before['kl']:.4f} -> {after['kl']:.4f} nats per token"
    )

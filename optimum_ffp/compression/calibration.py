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
        before: Mapping[str, float],
        after: Mapping[str, float],
        record: Mapping[str, Any],
    ) -> "Calibration":
        """Return the result of a further stage, whose weights are kept if they lower the held-out perplexity.

        Args:
            stage: Name of the stage.
            weights: Weights after the stage.
            before: `perplexity` and `kl` on the held-out windows before the stage.
            after: Those after it.
            record: Further entries of the record.
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
        earlier = {"stages": [{"stage": "ridge"} | before], "kept": "ridge"} | self.record
        stages = {"stages": [*earlier["stages"], {"stage": stage} | after]}
        if is_better:
            return Calibration(weights, earlier | record | stages | {"kept": stage})
        return Calibration(self.weights, earlier | record | stages)


def describe_change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Format the perplexity and the divergence on held-out windows before and after a stage."""
    return (
        f"perplexity {before['perplexity']:.2f} -> {after['perplexity']:.2f}, "
        f"divergence {before['kl']:.4f} -> {after['kl']:.4f} nats per token"
    )

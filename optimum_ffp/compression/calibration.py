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
        earlier = {"stages": [{"stage": "ridge"} | before], "kept": "ridge"} | self.record
        stages = {"stages": [*earlier["stages"], {"stage": stage} | after]}
        if is_improvement(f"calibration {stage}", before, after):
            return Calibration(weights, earlier | record | stages | {"kept": stage})
        return Calibration(self.weights, earlier | record | stages)


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

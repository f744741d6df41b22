"""Result of a calibration."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Calibration:
    """Calibrated weights.

    Attributes:
        weights: Weights by the parameter's name, or `None` without calibration.
        record: Errors on held-out windows, if the calibration measures them.
    """

    weights: dict[str, torch.Tensor] | None = None
    record: dict[str, Any] = field(default_factory=dict)

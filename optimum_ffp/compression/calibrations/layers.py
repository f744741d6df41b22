"""Ridge regression, then training of every pruned layer to reproduce the output of the dense layer."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...config.fields import Config, option
from ...config.prune import GRADIENT_COST


if TYPE_CHECKING:
    from ..calibration import Calibration, CalibrationTask


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of the training of layers."""

    distillation_passes: int = option(
        2, "Number of passes over the calibration windows to train the layers.", low=1, stage="calibration"
    )
    distillation_rate: float = option(
        0.01, "Learning rate for training the layers, relative to the size of the weights.", stage="calibration"
    )
    train_seq_len: int = option(
        512,
        "Minimum tokens per training window: calibration windows are split into equal parts of at least this length. "
        "Shorter windows mean more steps and less time in attention.",
        low=2,
        stage="calibration",
    )

    def windows(self, num_samples: int, held_out: int) -> int:
        """Return an upper bound of the windows that training reads, in forward passes of the model."""
        if not self.distillation_passes:
            return 0
        return (2 + GRADIENT_COST * self.distillation_passes) * num_samples + (6 + self.distillation_passes) * held_out

    def parts(self, seq_len: int) -> int:
        """Return the number of training windows per calibration window of `seq_len` tokens."""
        return max(1, seq_len // self.train_seq_len)


def calibrate(task: "CalibrationTask", options: Options) -> "Calibration":
    """Train every layer on the calibration windows (`distill`), which is kept if it lowers the held-out divergence."""
    from ..distillation import distill
    from . import ridge

    before = ridge.calibrate(task)
    distilled = distill(
        task,
        before.weights or {},
        passes=options.distillation_passes,
        learning_rate=options.distillation_rate,
        parts=options.parts(task.plan.seq_len),
    )
    kept = task.policy.kept_layers(len(task.sorted_model.prefixes))
    errors: dict[str, Any] = {"layers": [{"layer": index} | fit.errors for index, fit in zip(kept, distilled.layers)]}
    if distilled.last_norm is not None:
        errors["last_norm"] = distilled.last_norm.errors
    return task.conclude("layers", replace(before, record=before.record | errors), distilled.weights)

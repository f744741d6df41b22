"""Sizes of a training."""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..config import RecoveryConfig
from ..data import window_length
from ..utils import processes


# Tokens that windows are at least as long as, if the model knows as many positions, where a step has fewer than one of
# the usual length.
SHORTEST = 512


@dataclass(frozen=True)
class Batch:
    """Windows of a training.

    Attributes:
        length: Tokens per window.
        at_once: Windows per forward pass of a process.
        accumulation: Forward passes of a process per step.
        windows: Windows per step, of all processes.
        steps: Number of steps.
    """

    length: int
    at_once: int
    accumulation: int
    windows: int
    steps: int

    @classmethod
    def for_model(cls, config: RecoveryConfig, model_config: PretrainedConfig, count: int | None = None) -> "Batch":
        """Return the sizes closest to `batch_tokens` that processes share evenly, with steps for all `max_tokens`.

        Args:
            config: Options. Without `seq_len`, windows are as long as a step's share of one for each process.
            model_config: Config of the pruned model.
            count: Number of processes; that of this run if `None`.

        Raises:
            FFPError: If `seq_len` is larger than the model's number of positions.
        """
        config, count = config.resolve(), count or processes.count()
        length = window_length(config.seq_len, model_config)
        if config.seq_len is None:
            length = min(length, max(SHORTEST, config.batch_tokens // count))
        share = config.batch_tokens / (length * count)
        at_once = min(config.batch_size, max(1, round(share)))
        accumulation = max(1, round(share / at_once))
        windows = accumulation * at_once * count
        steps = math.ceil(config.max_tokens / (windows * length))
        return cls(length=length, at_once=at_once, accumulation=accumulation, windows=windows, steps=steps)

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.windows * self.length

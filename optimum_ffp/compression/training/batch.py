"""Batch sizes and number of steps of a training."""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from ...config import RecoveryConfig
from ...data import window_length
from ...utils import processes


# Minimum tokens per window, within the model's positions, if a step has fewer tokens than a window of default length.
MIN_LENGTH = 512


@dataclass(frozen=True)
class Batch:
    """Window length and batch sizes of a training.

    Attributes:
        length: Tokens per window.
        at_once: Windows per forward pass of a process.
        accumulation: Forward passes of a process per step.
        windows: Windows per step over all processes.
        steps: Number of steps.
    """

    length: int
    at_once: int
    accumulation: int
    windows: int
    steps: int

    @classmethod
    def for_model(cls, config: RecoveryConfig, model_config: PretrainedConfig, count: int | None = None) -> "Batch":
        """Choose sizes closest to `batch_tokens` that are divisible among processes, and steps for `max_tokens`.

        Args:
            config: Options. Without `seq_len`, windows are short enough for each process to have one per step.
            model_config: Config of the pruned model.
            count: Number of processes; by default that of this run.

        Raises:
            FFPError: If `seq_len` is larger than the model's number of positions.
        """
        config, count = config.resolve(), count or processes.count()
        length = window_length(config.seq_len, model_config)
        if config.seq_len is None:
            length = min(length, max(MIN_LENGTH, config.batch_tokens // count))
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

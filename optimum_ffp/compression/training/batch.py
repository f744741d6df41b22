"""Batch sizes and number of steps of a training."""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from ...config import RecoveryPlan
from ...data import window_length


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
    def of(
        cls,
        model_config: PretrainedConfig,
        seq_len: int | None,
        max_tokens: int,
        batch_tokens: int,
        batch_size: int,
        count: int,
    ) -> "Batch":
        """Choose sizes closest to `batch_tokens` that are divisible among processes, and steps for `max_tokens`.

        Args:
            model_config: Config of the pruned model.
            seq_len: Tokens per window; if `None`, windows are short enough for each process to have one per step.
            max_tokens: Tokens to train on.
            batch_tokens: Tokens per step.
            batch_size: Maximum number of windows per forward pass.
            count: Number of processes.

        Raises:
            FFPError: If `seq_len` is larger than the model's number of positions.
        """
        length = window_length(seq_len, model_config)
        if seq_len is None:
            length = min(length, max(MIN_LENGTH, batch_tokens // count))
        share = batch_tokens / (length * count)
        at_once = min(batch_size, max(1, round(share)))
        accumulation = max(1, round(share / at_once))
        windows = accumulation * at_once * count
        steps = math.ceil(max_tokens / (windows * length))
        return cls(length=length, at_once=at_once, accumulation=accumulation, windows=windows, steps=steps)

    @classmethod
    def of_recovery(cls, plan: RecoveryPlan, model_config: PretrainedConfig, count: int) -> "Batch":
        """Return the sizes of a recovery by a number of processes."""
        return cls.of(
            model_config,
            seq_len=plan.seq_len,
            max_tokens=int(plan.max_tokens),
            batch_tokens=plan.batch_tokens,
            batch_size=plan.batch_size,
            count=count,
        )

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.windows * self.length

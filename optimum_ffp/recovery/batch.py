"""Sizes of a training. Imports nothing heavy but torch."""

import math
from dataclasses import dataclass

from ..utils import processes
from .config import RecoveryConfig


@dataclass(frozen=True)
class Batch:
    """Windows of a training.

    Attributes:
        length: Tokens per window.
        accumulation: Forward passes of a process per step.
        windows: Windows per step, of all processes.
        steps: Number of steps.
    """

    length: int
    accumulation: int
    windows: int
    steps: int

    @classmethod
    def of(cls, config: RecoveryConfig, length: int, count: int | None = None) -> "Batch":
        """The sizes closest to `batch_tokens` that processes share evenly, and steps for at least `max_tokens`.

        Args:
            config: Options.
            length: Tokens per window.
            count: Number of processes; that of this run if `None`.
        """
        at_once = config.batch_size * (count or processes.count())
        accumulation = max(1, round(config.batch_tokens / (length * at_once)))
        windows = accumulation * at_once
        return cls(length, accumulation, windows, math.ceil(config.max_tokens / (windows * length)))

    @property
    def all_windows(self) -> int:
        """Windows of all steps."""
        return self.steps * self.windows

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.windows * self.length

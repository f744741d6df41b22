"""Time, peak memory and tokens of every stage of a pruning run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from .heap import return_free_memory


# Sampling interval of resident memory: short enough to catch peaks, long enough for negligible overhead.
SAMPLING_SECONDS = 0.05


class StageMeter:
    """Time, peak memory and tokens of named stages. Times and tokens of a repeated stage add up.

    Args:
        before: Meters of earlier stages, whose values this one starts with.

    Attributes:
        seconds: Time per stage.
        peak_bytes: Peak memory of the process per stage: accelerator memory if one is used, otherwise resident memory,
            which is sampled twenty times per second.
        tokens: Tokens per stage in forward passes of the model: a forward and backward pass counts as three. Work that
            is resumed counts too, so that they don't depend on interruptions.
    """

    def __init__(self, *before: "StageMeter"):
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        for meter in before:
            for name, value in meter.seconds.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + value
            for name, value in meter.peak_bytes.items():
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), value)
            for name, value in meter.tokens.items():
                self.count(name, value)

    def count(self, name: str, tokens: int) -> None:
        """Add tokens to a stage."""
        if tokens:
            self.tokens[name] = self.tokens.get(name, 0) + tokens

    @contextmanager
    def stage(self, name: str, tokens: int = 0) -> Iterator[None]:
        """Measure time and peak memory of the context, in which the stage reads a number of tokens.

        An error gets the name of the innermost stage as its attribute `stage`.
        """
        self.count(name, tokens)
        with _peak_memory() as peak:
            start = time.perf_counter()
            try:
                yield
            except Exception as error:
                error.stage = getattr(error, "stage", name)
                raise
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), *peak)
        return_free_memory()


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    # An accelerator without allocated memory is not in use.
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        peak: list[int] = []
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.append(torch.cuda.max_memory_allocated())
        return
    process, done = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss]

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        # On a busy machine a short stage may end before the thread has had its turn.
        peak[0] = max(peak[0], process.memory_info().rss)

"""What every stage of a prune costs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from .heap import return_free_memory


# Often enough to see what a stage holds, rarely enough to cost it nothing.
SAMPLING_SECONDS = 0.05


class StageMeter:
    """Time and peak memory of named stages; a stage that comes again adds to its time.

    Args:
        before: Meters of the stages before, whose figures this one begins with.

    Attributes:
        seconds: By stage.
        peak_bytes: By stage, the whole process's: of the accelerator if one is used, otherwise resident memory, which
            is sampled twenty times a second.
    """

    def __init__(self, *before: "StageMeter"):
        self.seconds = {name: value for meter in before for name, value in meter.seconds.items()}
        self.peak_bytes = {name: value for meter in before for name, value in meter.peak_bytes.items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what runs inside the context."""
        with _peak_memory() as peak:
            start = time.perf_counter()
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), *peak)
        return_free_memory()


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    # An accelerator that nothing has been put on is not used.
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

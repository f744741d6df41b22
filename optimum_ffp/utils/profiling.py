"""Time, peak memory and tokens of every stage of a prune."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .host_memory import return_free_memory, used_host_memory


# Sampling interval of host memory: short enough to catch peaks, long enough for negligible overhead.
SAMPLING_SECONDS = 0.05


class Stopwatch:
    """Time in stages, with that of results of earlier processes that are reused."""

    total = saved = 0.0
    started: float | None = None

    def read(self) -> float:
        """Return the time so far."""
        return self.total + (time.perf_counter() - self.started if self.started else 0)

    def lap(self, reused: float = 0) -> float:
        """Return the time since the last call, for the result that is saved, or add the time of a `reused` one."""
        before, self.total = self.saved, self.total + reused
        self.saved = self.read()
        return self.saved - before


# Stages of a process run one after another.
STOPWATCH = Stopwatch()


class StageMeter:
    """Time, peak memory and tokens of named stages. Times and tokens of a repeated stage add up.

    Args:
        previous: Meters of earlier stages, whose values are the starting point.
        counter: Object that counts tokens in its attribute `tokens`; tokens are not counted if `None`.

    Attributes:
        seconds: Time per stage.
        peak_bytes: Peak memory per stage: of the accelerator if one is used, otherwise of the host, without pages of
            mapped files.
        tokens: Tokens per stage, in forward passes of the model.
    """

    def __init__(self, *previous: "StageMeter", counter: Any = None):
        self.counter = counter
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.peak_bytes, self.tokens = Counter(), Counter()
        for meter in previous:
            for name, seconds in meter.seconds.items():
                self.seconds[name] += seconds
            self.peak_bytes |= meter.peak_bytes
            self.tokens += meter.tokens

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the context. Exceptions get the name of the innermost stage as attribute `stage`."""
        STOPWATCH.started, start = time.perf_counter(), STOPWATCH.total
        tokens_before = self.counter and self.counter.tokens
        try:
            with _peak_memory() as peak:
                yield
        except Exception as error:
            vars(error).setdefault("stage", name)
            raise
        STOPWATCH.total, STOPWATCH.started = STOPWATCH.read(), None
        self.seconds[name] += STOPWATCH.total - start
        self.peak_bytes[name] = max(self.peak_bytes[name], *peak)
        if self.counter and self.counter.tokens > tokens_before:
            self.tokens[name] += self.counter.tokens - tokens_before
        return_free_memory()


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    # An accelerator without allocated memory is not in use.
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        peak: list[int] = []
        yield peak
        peak.append(torch.cuda.max_memory_allocated())
        return
    stop, peak = threading.Event(), [0]

    def watch() -> None:
        stopped = False
        while not stopped:
            stopped = stop.wait(SAMPLING_SECONDS)
            peak[0] = max(peak[0], used_host_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()

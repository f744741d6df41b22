"""Progress of all stages: bars, and calls of a callback."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from .processes import is_main


logger = logging.getLogger(__name__)
# Seconds between lines.
INTERVAL = 60.0
_CALLBACK: ContextVar[Callable[[float | None, str], Any] | None] = ContextVar("callback", default=None)


@contextmanager
def report_progress(callback: Callable[[float | None, str], Any]) -> Iterator[None]:
    """Call a function with the progress of every stage in a context: `with report_progress(show): pruner.prune()`.

    Args:
        callback: Function of the fraction of the stage that is done (`None` if its length is unknown) and its name,
            such as `Statistics`, called in the main process. An exception that it raises ends the stage.
    """
    token = _CALLBACK.set(callback)
    try:
        yield
    finally:
        _CALLBACK.reset(token)


class _Bar(tqdm):
    """A bar that also counts if it is disabled, and reports the progress of a stage."""

    stage: str | None = None

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable:
            self.n += n or 0
        drawn = super().update(n)
        if self.stage and (callback := _CALLBACK.get()):
            callback(self.n / self.total if self.total else None, self.stage)
        return drawn


@contextmanager
def progress_bar(total: int | None, description: str | None, unit: str) -> Iterator[tqdm]:
    """Show a bar for a stage on a terminal or in a notebook; elsewhere, log a line every minute and at the end.

    Show neither without a description. Transformers' `disable_progress_bar` and `TQDM_DISABLE` disable the bar.
    """
    shown = description is not None and is_main()
    enabled = shown and is_progress_bar_enabled() and not os.environ.get("TQDM_DISABLE")
    start, ended = time.perf_counter(), threading.Event()
    # With `None`, tqdm finds out whether standard error is a terminal.
    disable = None if enabled else True

    def report() -> None:
        while not ended.wait(INTERVAL):
            of = f" of {bar.total}" if bar.total else ""
            logger.info("%s %s: %s %d%s", time.strftime("%H:%M:%S"), description, unit, bar.n, of)

    with _Bar(total=total, desc=description, unit=unit, disable=disable, dynamic_ncols=True) as bar:
        bar.stage, disabled = description if shown else None, bar.disable
        if shown and disabled:
            threading.Thread(target=report, daemon=True).start()
        try:
            yield bar
        finally:
            ended.set()
    if shown and disabled:
        logger.info("%s %s: %.1f s", time.strftime("%H:%M:%S"), description, time.perf_counter() - start)

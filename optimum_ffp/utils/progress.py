"""Progress of all stages: bars, and calls of a callback."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from .processes import is_main


logger = logging.getLogger(__name__)
# Receives the fraction of a stage that is done, `None` if its length is unknown, and the name of the stage.
ProgressCallback = Callable[[float | None, str], Any]
_CALLBACK: ContextVar[ProgressCallback | None] = ContextVar("callback", default=None)


@contextmanager
def report_progress(callback: ProgressCallback | None) -> Iterator[None]:
    """Call a function whenever a stage in this context makes progress, in the main process."""
    token = _CALLBACK.set(callback)
    try:
        yield
    finally:
        _CALLBACK.reset(token)


class _Bar(tqdm):
    """Reports progress, whether or not the bar is shown."""

    stage: str | None = None
    done = 0

    def update(self, n: float | None = 1) -> bool | None:
        self.done += n or 0
        if self.stage and (callback := _CALLBACK.get()):
            callback(self.done / self.total if self.total else None, self.stage)
        return super().update(n)


@contextmanager
def progress_bar(total: int | None, description: str | None, unit: str) -> Iterator[tqdm]:
    """Show a bar for a stage on a terminal or in a notebook; elsewhere, log a line with its time at the end.

    Show neither without a description. Transformers' `disable_progress_bar` and `TQDM_DISABLE` disable the bar.
    """
    shown = description is not None and is_main()
    enabled = shown and is_progress_bar_enabled() and not os.environ.get("TQDM_DISABLE")
    start = time.perf_counter()
    # With `None`, tqdm finds out whether standard error is a terminal.
    disable = None if enabled else True
    with _Bar(total=total, desc=description, unit=unit, disable=disable, dynamic_ncols=True) as bar:
        bar.stage, disabled = description if shown else None, bar.disable
        yield bar
    if shown and disabled:
        logger.info("%s: %.1f s", description, time.perf_counter() - start)

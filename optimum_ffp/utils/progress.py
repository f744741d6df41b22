"""Progress bars of all stages."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from .processes import is_main


logger = logging.getLogger(__name__)


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
    with tqdm(total=total, desc=description, unit=unit, disable=disable, dynamic_ncols=True) as bar:
        disabled = bar.disable
        yield bar
    if shown and disabled:
        logger.info("%s: %.1f s", description, time.perf_counter() - start)

"""Exit codes, and the end of a command by an error or a signal: one line instead of a traceback."""

import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ..config.fields import name_arguments


USER_ERROR, NOT_IMPROVED, INTERRUPTED, TERMINATED = 2, 3, 130, 143
EXIT_CODES = """exit codes:
  0    done, also if --resume finds that the command has finished
  1    unexpected error, with a traceback
  2    error that you can correct: an option, a file, a model, memory or disk space
  3    a recovery that did not lower the divergence
  130  interrupted by Ctrl-C
  143  terminated by SIGTERM
"""
# Time for torch to terminate the other processes after the main one has failed.
GRACE_SECONDS = 10.0


@contextmanager
def one_line_errors(
    log_level: str = "info", interrupted: str = "interrupted", options: Collection[str] = ()
) -> Iterator[None]:
    """Run a command within the CPU quota, show its messages, and end it with one line and an exit code on errors.

    `FFPError` and errors of the file system are errors of the user. Messages name `options` as on the command line;
    `interrupted` is the one after Ctrl-C or SIGTERM.
    """
    from ..errors import FFPError, NotRecoveredError
    from ..utils.host_memory import limit_threads

    limit_threads()
    is_main = os.environ.get("RANK", "0") == "0"
    # Some CI systems have a terminal without a size, on which bars are empty lines.
    if not sys.stderr.isatty() or not os.get_terminal_size(sys.stderr.fileno()).columns:
        # Bars of all packages; tqdm reads this when it is imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        with _messages(log_level, options):
            yield
    except Exception as error:
        if not is_main:
            # The main process reports the error first, upon which torch ends this one with SIGTERM.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(GRACE_SECONDS)
        if isinstance(error, OSError) and error.filename:
            reason = f"{error.filename} can't be read or written: {error.strerror}"
        elif isinstance(error, (FFPError, PermissionError)):
            reason = str(error)
        else:
            raise
        print(f"error: {name_arguments(reason, options)}", file=sys.stderr)
        sys.exit(NOT_IMPROVED if isinstance(error, NotRecoveredError) else USER_ERROR)
    except KeyboardInterrupt as signaled:
        if is_main:
            # A terminal has echoed ^C.
            print("\n" * sys.stderr.isatty() + interrupted, file=sys.stderr)
        sys.exit(signaled.args[0] if signaled.args else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: Any) -> NoReturn:
    """End a command on SIGTERM as on Ctrl-C, but for the exit code."""
    raise KeyboardInterrupt(TERMINATED)


@contextmanager
def _messages(level: str, options: Collection[str]) -> Iterator[None]:
    """Write messages of this package to the terminal, above the bars, and close the bars at the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    logger, handler = logging.getLogger("optimum_ffp"), logging.StreamHandler()
    handler.setFormatter(_MessageFormatter(options))
    previous = logger.level
    logger.setLevel(level.upper())
    logger.addHandler(handler)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        # Other packages leave theirs open after an error, and would draw them once more after its line.
        for bar in [*getattr(tqdm, "_instances", ())]:
            bar.close()
        logger.removeHandler(handler)
        logger.setLevel(previous)


class _MessageFormatter(logging.Formatter):
    def __init__(self, options: Collection[str]):
        super().__init__()
        self.options = options

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + name_arguments(super().format(record), self.options)

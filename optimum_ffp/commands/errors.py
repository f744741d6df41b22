"""One-line errors with exit codes instead of tracebacks."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


USER_ERROR, INTERRUPTED = 2, 130
# Time for torch to terminate the other processes after the main one has failed.
GRACE_SECONDS = 10.0


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Exit without a traceback on `FFPError` and missing permissions (exit code 2), and Ctrl-C (130).

    In distributed runs, give the main process time to report the error first.

    Args:
        interrupted: Message after Ctrl-C.
    """
    from ..errors import FFPError

    is_main = os.environ.get("RANK", "0") == "0"
    try:
        yield
    except Exception as error:
        if not is_main:
            time.sleep(GRACE_SECONDS)
        if not isinstance(error, (FFPError, PermissionError)):
            raise
        filename = getattr(error, "filename", None)
        reason = f"{filename} can't be read or written: {error.strerror}" if filename else str(error)
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        if is_main:
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)

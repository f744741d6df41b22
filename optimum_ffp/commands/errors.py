"""Errors as one line and an exit code instead of a traceback."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


USER_ERROR, INTERRUPTED = 2, 130
# Time in which torch ends the other processes once the main one has failed.
GRACE_SECONDS = 10.0


@contextmanager
def one_line_endings(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process without a traceback on `FFPError` and missing permissions (exit code 2), and Ctrl-C (130).

    Of several processes the main one says why, unless it has not failed.

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
        named = getattr(error, "filename", None)
        reason = f"{named} may not be read or written: {error.strerror}" if named else str(error)
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        if is_main:
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)

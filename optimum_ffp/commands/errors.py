"""Errors as one line and an exit code instead of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


USER_ERROR, INTERRUPTED = 2, 130


@contextmanager
def one_line_endings(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process without a traceback on `FFPError` (exit code 2) and Ctrl-C (exit code 130).

    Args:
        interrupted: Message after Ctrl-C.
    """
    from ..errors import FFPError

    try:
        yield
    except FFPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)

"""How a command ends that can't go on: with one line, and an exit code that says why."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


USER_ERROR, INTERRUPTED = 2, 130


@contextmanager
def one_line_endings(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process without a traceback where the user can do something about it.

    Args:
        interrupted: What to say after Ctrl-C.
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

"""Errors as one line and an exit code instead of a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


USER_ERROR, INTERRUPTED = 2, 130


@contextmanager
def one_line_endings(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process without a traceback on `FFPError` and missing permissions (exit code 2), and Ctrl-C (130).

    Of several processes, the first that fails says why.

    Args:
        interrupted: Message after Ctrl-C.
    """
    from ..errors import FFPError

    try:
        yield
    except (FFPError, PermissionError) as error:
        from ..utils.processes import LAUNCHED, ProcessLostError, tell_first

        if tell_first():
            if isinstance(error, ProcessLostError) and LAUNCHED in os.environ:
                # `launch` says it, unless another was killed.
                Path(os.environ[LAUNCHED]).write_text(str(error))
            else:
                named = getattr(error, "filename", None)
                reason = f"{named} may not be read or written: {error.strerror}" if named else str(error)
                print(f"error: {reason}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        from ..utils.processes import is_main

        if is_main():
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)

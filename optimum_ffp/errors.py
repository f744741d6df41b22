"""The exception for errors of the user, as opposed to bugs, and what it says of others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FFPError(ValueError):
    """An error that the user can correct: a wrong value, a missing file, an unsupported model.

    The message is one line that says what was found, what is allowed and what to do. The command line prints only that
    line and exits with code 2.
    """


class NotRecoveredError(FFPError):
    """A recovery that has not lowered the divergence on held-out windows; the command line exits with code 3."""


@contextmanager
def convert_errors(
    describe: Callable[[Exception], str], passes: Callable[[Exception], bool] = lambda error: False
) -> Iterator[None]:
    """Convert every exception of a library to an `FFPError`, for libraries that raise dozens of types.

    Args:
        describe: Returns the message, given the exception.
        passes: Whether an exception is left as it is.
    """
    try:
        yield
    except FFPError:
        raise
    except Exception as error:
        if passes(error):
            raise
        raise FFPError(describe(error)) from None


def named_line(error: BaseException) -> str:
    """Return the name of an error and the first line of its message."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException | str, token: str | None = None) -> str:
    """Return the first non-empty line of a message, with tokens masked; the name of the error if it has none."""
    from huggingface_hub import get_token

    text = str(error)
    for secret in f"{token or ''} {get_token() or ''}".split():
        text = text.replace(secret, "***")
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return lines[0] if lines else (type(error).__name__ if isinstance(error, BaseException) else "")

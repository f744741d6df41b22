"""The exception for errors of the user, as opposed to bugs."""


class FFPError(ValueError):
    """An error that the user can correct: a wrong value, a missing file, an unsupported model.

    The message is one line that says what was found, what is allowed and what to do. The command line prints only that
    line and exits with code 2.
    """

"""The one exception that stands for a mistake of the user, not of the program."""


class FFPError(ValueError):
    """Something the user can put right: a value, a file, a model that isn't supported.

    The message is one line that says what was found, what is allowed and what to do. The command line prints that
    line alone and ends with exit code 2.
    """

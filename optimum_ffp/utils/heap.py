"""Release of freed host memory that the C library retains."""

import ctypes
import sys


def return_free_memory() -> None:
    """Return freed host memory to the operating system.

    Freed tensors fragment glibc's heap, by up to the size of the model. No-op with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)

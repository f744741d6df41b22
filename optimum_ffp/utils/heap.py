"""Host memory that was freed, but that the C library keeps."""

import ctypes
import sys


def return_free_memory() -> None:
    """Gives freed host memory back to the system.

    Tensors that are freed leave holes in glibc's heap, which may add up to as much as the model. With another C
    library nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)

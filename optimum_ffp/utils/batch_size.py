"""Handling of out-of-memory errors: retries with smaller batches, or a one-line error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ..errors import FFPError, one_line


Result = TypeVar("Result")
logger = logging.getLogger(__name__)
# Out-of-memory messages of pinned memory, CUDA libraries and NCCL that accelerate doesn't recognize.
MESSAGES = (
    "out of memory",
    "ALLOC_FAILED",
    "Failed to CUDA calloc",
    "calling cusolverDnCreate",
    "calling cublasCreate",
)
REMEDIES = (
    "offload host or disk, a smaller batch_size or seq_len, dtype bfloat16, calibration layers, or another device"
)


@contextmanager
def memory_errors(remedies: str = REMEDIES, stage: str = "loading") -> Iterator[None]:
    """Convert an out-of-memory error to an `FFPError`, which names the stage of a `StageMeter`, or else `stage`."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        # The traceback would keep the tensors of the failed calls alive.
        clear_frames(error.__traceback__)
        stage, reason = getattr(error, "stage", stage), one_line(error)
        raise FFPError(f"out of memory in {stage} ({reason}); try {remedies}") from None


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means that device or host memory is exhausted."""
    return should_reduce_batch_size(error) or any(text in str(error) for text in MESSAGES)


def with_halving_batches(run: Callable[[int], Result], batch_size: int) -> Result:
    """Return the result of `run`, which starts from the beginning, halving the batch size while memory runs out."""
    # accelerate's find_executable_batch_size would clear caches before every call.
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if batch_size == 1 or not out_of_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
        logger.warning("out of memory with batch size %d; retrying with %d", batch_size, batch_size // 2)
        batch_size //= 2

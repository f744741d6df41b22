"""Distributed runs, started by `accelerate launch` or `torchrun`: every process takes a share of the windows."""

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, parse_flag_from_env
from transformers.utils import logging as transformers_logging

from ..errors import FFPError


Value = TypeVar("Value")
# The main process may write a large model, or text, while the others wait.
TIMEOUT = timedelta(days=1)


def join(device: str | None = None) -> None:
    """Initialize the process group; no-op in a single process. Raises `FFPError` if `device` has an index."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if ":" in str(device):
        raise FFPError(f"every process uses its own device; leave out device {device!r}")
    PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=TIMEOUT)
    if not is_main():
        # All processes log the same.
        logging.getLogger("optimum_ffp").setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def leave() -> None:
    """Destroy the process group at the end of a run."""
    if count() > 1:
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes of this run."""
    # Some builds of torch lack distributed.
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_count() -> int:
    """Return the number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count() > 1 else 1


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, which writes, prints and uploads."""
    return rank() == 0


def shards_models() -> bool:
    """Return whether `accelerate launch` shards models over the processes (FSDP), on accelerators."""
    if count() == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    return PartialState().distributed_type != DistributedType.MULTI_CPU


def wait() -> None:
    """Wait until all processes reach this point."""
    if count() > 1:
        dist.barrier()


def share(total: int) -> slice:
    """Return the slice of a number of windows for this process; slices are contiguous and as even as possible."""
    size, remainder = divmod(total, count())
    start = rank() * size + min(rank(), remainder)
    return slice(start, start + size + (rank() < remainder))


def from_main(value: Value) -> Value:
    """Broadcast the value of the main process; those of the others are ignored."""
    return on_main(lambda: value)


def on_main(compute: Callable[[], Value]) -> Value:
    """Compute a value in the main process and broadcast it."""
    if count() == 1:
        return compute()
    values: list[Any] = [compute() if is_main() else None]
    return broadcast_object_list(values)[0]


def tensors_on_main(compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Compute named tensors in the main process and broadcast them; with several processes, in host memory."""
    if count() == 1:
        return compute()
    tensors = compute() if is_main() else {}
    names = from_main(list(tensors))
    return {name: on_main(lambda name=name: tensors[name].detach().cpu()) for name in names}


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, one per window of their `share`; with several processes, in host memory."""
    if count() == 1:
        return rows
    return torch.cat(gather_object([rows.cpu()]))


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """All-reduce a tensor in place by summation, and return it."""
    if count() > 1:
        # Accelerator-only backends don't accept CPU tensors.
        total = tensor.to(PartialState().device)
        dist.all_reduce(total)
        tensor.copy_(total)
    return tensor

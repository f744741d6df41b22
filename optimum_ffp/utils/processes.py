"""The processes of a run: they share the windows and the linear algebra of a prune, and end with the same model."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from ..errors import FFPError, one_line
from .batch_size import out_of_memory


Value = TypeVar("Value")
# Path of a file, set in processes that the command line has started: a process that loses another writes its message
# there, which the command line prints unless one was killed.
LAUNCHED = "OPTIMUM_FFP_LAUNCHED"
# What accelerate sets for launches that divide models in other ways than FSDP.
OTHER_DIVISIONS = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
# For all to start, on machines that may load libraries from a network.
MEETING = timedelta(minutes=10)
# The main process may write a large model, or text, while the others wait.
TIMEOUT = timedelta(days=1)
# In messages of the libraries that exchange tensors, whose errors may have no class of their own.
CONNECTION = re.compile("gloo|NCCL|Connection (closed|reset)")
# Seconds that a process waits for the message of the one that has ended first.
GRACE_SECONDS = 1.0


class ProcessLostError(FFPError):
    """Another process of the run has ended."""


def started() -> int:
    """Return the number of processes that `accelerate launch` or `torchrun` has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_device_of_several(device: str | None) -> None:
    """Check that each of several processes can have a device of its own.

    Args:
        device: Device of the model, as in `LoadOptions`.

    Raises:
        FFPError: If there is no such kind of device, or one of several is named.
    """
    try:
        index = None if device is None else torch.device(device).index
    except RuntimeError as error:
        raise FFPError(f"device {device!r} can't be used here: {one_line(error)}") from None
    if index is not None:
        raise FFPError(f"with several processes every one has a device of its own; leave out device {device!r}")


def join(device: str | None = None) -> None:
    """Join the other processes of a run that `accelerate launch` or `torchrun` has started; alone, do nothing.

    Args:
        device: Device of the model, as in `LoadOptions`.

    Raises:
        FFPError: If the others can't be reached or have no backend for host memory, or a device is named that they
            would have to share.
    """
    if started() == 1:
        return
    if dist.is_initialized():
        if "cpu:" not in (found := dist.get_backend_config()):
            raise FFPError(
                f"the processes are joined by {found} alone, without a backend for host memory; load the model before "
                "anything else joins them, or join them by torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
            )
        # Whoever has joined them may have left all on the first device.
        local = int(os.environ.get("LOCAL_RANK", 0))
        if torch.accelerator.is_available() and local < torch.accelerator.device_count():
            torch.accelerator.set_device_index(torch.accelerator.current_device_index() or local)
        return
    from accelerate import PartialState

    check_device_of_several(device)
    on_cpu = device == "cpu" or torch.accelerator.current_accelerator(check_available=True) is None
    try:
        _meet(_backends(on_cpu))
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise FFPError(f"the processes of this run can't reach each other ({reason}); start all again") from None
    own = PartialState(cpu=on_cpu).device
    if own.type != "cpu":
        torch.accelerator.set_device_index(own.index)
    if not is_main():
        # All say the same.
        logging.getLogger("optimum_ffp").setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def leave() -> None:
    """Leave the other processes, at the end of a run."""
    if _several():
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if _several() else 1


def local_count() -> int:
    """Return the number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _several() else 1


def machines() -> int:
    """Return the number of machines of this run."""
    return count() // local_count()


def divide_models() -> bool:
    """Return whether `accelerate launch` has been told to divide models among the processes of this run (FSDP).

    Raises:
        FFPError: If that can't be: by FSDP 1, DeepSpeed or Megatron-LM, or with one process.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, parse_flag_from_env

    for name, flag in OTHER_DIVISIONS.items():
        if parse_flag_from_env(flag):
            raise FFPError(f"{name} can't be used; launch FSDP 2, or one process for each GPU with whole models")
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if not _several():
        raise FFPError(
            "FSDP divides models among several processes, and this run has one; start more, or leave out FSDP"
        )
    # Accelerate has no FSDP on the CPU.
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        return False
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise FFPError(f"FSDP {version} can't be used; set fsdp_version: 2 in the config of accelerate")
    return True


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if _several() else 0


def is_main() -> bool:
    """Return whether this is the process that writes, prints and uploads."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes have come here."""
    if _several():
        with _losses_of_others():
            dist.barrier()


def from_main(value: Value) -> Value:
    """Return the value that the main process gives; those of the others are ignored."""
    if not _several():
        return value
    values = [value]
    with _losses_of_others():
        dist.broadcast_object_list(values)
    return values[0]


def on_main(compute: Callable[[], Value]) -> Value:
    """Return what the main process computes."""
    return from_main(compute() if is_main() else None)


def all_agree(condition: bool) -> bool:
    """Return whether a condition holds in all processes."""
    if not _several():
        return condition
    found = torch.tensor([int(condition)])
    with _losses_of_others():
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return bool(found)


def gather(rows: torch.Tensor, shares: "Shares") -> torch.Tensor:
    """Return the rows of the windows of all processes, in order.

    Args:
        rows: One row per window of this process.
        shares: Shares of the processes.
    """
    if not _several():
        return rows
    found = []
    for process in range(count()):
        own = process == rank()
        part = rows.contiguous() if own else rows.new_empty(len(shares.of(process)), *rows.shape[1:])
        found.append(broadcast_tensor(part, process))
    return torch.cat(found)


def broadcast_tensor(tensor: torch.Tensor, owner: int) -> torch.Tensor:
    """Return the tensor of one process; those of the others are overwritten."""
    if _several():
        with _losses_of_others():
            dist.broadcast(tensor, owner)
    return tensor


def broadcast(tensors: dict[str, torch.Tensor] | None, owner: int) -> dict[str, torch.Tensor]:
    """Return named tensors of one process, in host memory on all others.

    Args:
        tensors: The tensors; ignored if this process is not the owner.
        owner: Index of the process that has them.
    """
    if not _several():
        return tensors
    mine = rank() == owner
    shapes = [[(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()] if mine else None]
    with _losses_of_others():
        dist.broadcast_object_list(shapes, owner)
    found = tensors if mine else {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in shapes[0]}
    for tensor in found.values():
        broadcast_tensor(tensor.detach().cpu().contiguous() if mine else tensor, owner)
    return found


def send(tensor: torch.Tensor, target: int) -> None:
    """Send a tensor to another process, which calls `receive`."""
    with _losses_of_others():
        dist.send(tensor, target)


def receive(like: torch.Tensor, source: int) -> torch.Tensor:
    """Return a tensor that another process sends, with the shape, dtype and device of `like`."""
    found = torch.empty_like(like)
    with _losses_of_others():
        dist.recv(found, source)
    return found


def tell_first() -> bool:
    """Return whether no other process has reported an error before, which is what ends the run."""
    if not _several():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add("ffp-error", 1) == 1
    # The process that keeps the store may have ended.
    except (RuntimeError, ValueError):
        return True


class Shares:
    """Windows in chunks, and chunks by process; both in order, and divided as evenly as possible.

    Args:
        windows: Number of windows.
        chunks: Number of chunks, which is the largest number of processes that get a share; at most that of windows.

    Attributes:
        chunks: Windows of every chunk.
    """

    def __init__(self, windows: int, chunks: int | None = None):
        self.windows = windows
        self.chunks = _divide(windows, min(windows, chunks or windows))
        self._by_process = _divide(len(self.chunks), count())

    @property
    def own(self) -> slice:
        """Windows of this process."""
        windows = self.of(rank())
        return slice(windows.start, windows.stop)

    @property
    def own_chunks(self) -> list[tuple[int, slice]]:
        """Index of every chunk of this process, and its windows among those of this process."""
        start, chunks = self.own.start, self._by_process[rank()]
        return [(index, slice(self.chunks[index].start - start, self.chunks[index].stop - start)) for index in chunks]

    def of(self, process: int) -> range:
        """Return the windows of a process."""
        chunks = self._by_process[process]
        if not chunks:
            return range(self.windows, self.windows)
        return range(self.chunks[chunks.start].start, self.chunks[chunks.stop - 1].stop)

    def owner(self, chunk: int) -> int:
        """Return the process that a chunk belongs to."""
        return next(process for process, chunks in enumerate(self._by_process) if chunk in chunks)


def _divide(total: int, shares: int) -> list[range]:
    size, rest = divmod(total, shares)
    edges = [index * size + min(index, rest) for index in range(shares + 1)]
    return [range(start, stop) for start, stop in zip(edges, edges[1:])]


def _backends(on_cpu: bool) -> str:
    """Return a backend for each kind of device: small sums and results are exchanged in host memory."""
    if on_cpu:
        return dist.Backend.GLOO
    accelerator = torch.accelerator.current_accelerator().type
    backend = dist.Backend.default_device_backend_map.get(accelerator, dist.Backend.GLOO)
    return f"cpu:{dist.Backend.GLOO},{accelerator}:{backend}"


def _meet(backends: str) -> None:
    """Join the processes once all have come; what is missing is told sooner than `TIMEOUT`."""
    # Some builds of torch have no distributed.
    from torch.distributed.rendezvous import rendezvous

    store, own, total = next(rendezvous("env://", timeout=MEETING))
    store = dist.PrefixStore("optimum-ffp", store)
    store.set(str(own), "")
    store.wait([*map(str, range(total))], MEETING)
    store.set_timeout(TIMEOUT)
    dist.init_process_group(backends, store=store, rank=own, world_size=total, timeout=TIMEOUT)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def lost_connections() -> Iterator[None]:
    """Convert the error with which an exchange that torch makes by itself, such as DDP's, notices a lost process.

    Raises:
        ProcessLostError: In its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not _several() or not (isinstance(error, dist.DistError) or CONNECTION.search(str(error))):
            raise
        with _losses_of_others():
            raise


@contextmanager
def _losses_of_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        # The one that has ended has the first word.
        time.sleep(GRACE_SECONDS)
        raise ProcessLostError(
            f"another of the {count()} processes has ended ({one_line(error)}); run the same command with "
            "--resume to continue"
        ) from None

"""How much memory there is."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..modeling.loading import resolve_device


# What a container may use, in control groups of version 2 and 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """What there is to run on.

    Attributes:
        device: Where the model goes.
        host_free: Bytes of host memory that this process may have, those that it has included.
        device_free: Bytes that are free on the accelerator; `None` if the model stays in host memory.
    """

    device: torch.device
    host_free: int
    device_free: int | None = None


def device_name(device: torch.device) -> str:
    """What kind of device it is. Two of one kind compute the same, bit for bit."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measure_machine(device: str | None = None, device_map: str | None = None) -> Machine:
    """What there is now.

    Args:
        device: Where the model will go; the accelerator if there is one.
        device_map: Where accelerate will put it instead; all accelerators count as one.

    Raises:
        FFPError: If there is no such device.
    """
    resolved = resolve_device(device)
    own = psutil.Process().memory_info().rss
    host = min([psutil.virtual_memory().available + own, *_limits()])
    if resolved.type != "cuda":
        return Machine(resolved, host)
    devices = range(torch.cuda.device_count()) if device_map else [resolved]
    return Machine(resolved, host, sum(torch.cuda.mem_get_info(one)[0] for one in devices))


def _limits() -> list[int]:
    found = [Path(path).read_text().strip() for path in LIMITS if Path(path).is_file()]
    return [int(limit) for limit in found if limit.isdecimal()]

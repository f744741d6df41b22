"""Available memory."""

from dataclasses import dataclass

import torch

from ..modeling.loading import resolve_device
from ..utils.device_memory import free_device_memory
from ..utils.host_memory import free_host_memory


@dataclass(frozen=True)
class Machine:
    """Device and available memory.

    Attributes:
        device: Device of the model.
        host_free: Bytes of host memory available to this process, including those that it uses.
        device_free: Free bytes on the accelerator; `None` if the model is in host memory.
    """

    device: torch.device
    host_free: int
    device_free: int | None = None


def device_name(device: torch.device) -> str:
    """Kind of device. Results of two kinds differ by rounding."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measure_machine(device: str | None = None) -> Machine:
    """Measures available memory.

    Args:
        device: Device of the model; the accelerator if there is one, if `None`.

    Raises:
        FFPError: If the device does not exist.
    """
    resolved = resolve_device(device)
    host, free = free_host_memory(), free_device_memory(resolved)
    return Machine(resolved, host, free)

"""Accelerators: their memory and kind."""

import torch


def free_device_memory(device: torch.device, used: bool = False) -> int | None:
    """Return the free memory of an accelerator in bytes; `None` for the CPU, devices that share its memory, and
    backends that don't report it.

    Cached blocks of torch's allocator count as free, since they are reused, or released when memory runs out. With
    `used`, the tensors of this process count too.
    """
    backend = getattr(torch, device.type, None)
    if backend is None or not hasattr(backend, "mem_get_info"):
        return None
    try:
        free = backend.mem_get_info(device)[0]
    except RuntimeError:
        # Some integrated GPUs don't support the query.
        return None
    return free + backend.memory_reserved(device) - (0 if used else backend.memory_allocated(device))


def device_name(device: torch.device) -> str:
    """Return the name of a kind of device. Results on two kinds may differ by rounding."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

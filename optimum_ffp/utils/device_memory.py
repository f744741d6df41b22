"""Accelerators: their memory and kind."""

import torch


def free_device_memory(device: torch.device, used: bool = False) -> int | None:
    """Return the free bytes of an accelerator; `None` for the CPU, and for devices that share its memory.

    Cached blocks of torch's allocator count as free. With `used`, the tensors of this process count too.
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

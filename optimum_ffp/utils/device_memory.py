"""Accelerators: their memory and kind."""

import torch


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes of an accelerator that new tensors can take; `None` for the CPU, what shares its memory and
    what doesn't tell.

    Blocks that torch keeps of tensors that are gone count as free: it uses them again, or returns them when memory
    runs out.
    """
    backend = getattr(torch, device.type, None)
    if not hasattr(backend, "mem_get_info"):
        return None
    try:
        free = backend.mem_get_info(device)[0]
    except RuntimeError:
        # Some integrated graphics processors can't be asked.
        return None
    return free + backend.memory_reserved(device) - backend.memory_allocated(device)


def device_name(device: torch.device) -> str:
    """Return the kind of a device. Results of two kinds differ by rounding."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

"""Memory of accelerators."""

import torch


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes of an accelerator that new tensors can take; `None` for the CPU and what shares its memory.

    Blocks that torch keeps of tensors that are gone count as free: it uses them again, or returns them when memory
    runs out.
    """
    backend = getattr(torch, device.type, None)
    if not hasattr(backend, "mem_get_info"):
        return None
    kept = backend.memory_reserved(device) - backend.memory_allocated(device)
    return backend.mem_get_info(device)[0] + kept

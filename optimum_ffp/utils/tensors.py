"""Values of parameters and buffers."""

import logging
from functools import cache

import torch
from torch import nn

from .batch_size import out_of_memory


logger = logging.getLogger(__name__)


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in pinned host memory, or in pageable memory if it is exhausted."""
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        _warn()
        return tensor.clone()


@cache
def _warn() -> None:
    logger.warning("pinned memory is exhausted; copies to the GPU will be slower")


def replace_value(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Replace the value of a parameter or buffer; the new value may be on another device."""
    value = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, value)

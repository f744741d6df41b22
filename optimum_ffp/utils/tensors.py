"""Values of parameters and buffers."""

import logging
from functools import cache

import torch
from torch import nn

from .batch_size import out_of_memory


logger = logging.getLogger(__name__)


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in pinned host memory, which CUDA reads directly; in other memory if there is too little."""
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        _warn()
        return tensor.clone()


@cache
def _warn() -> None:
    logger.warning("there is too little pinned memory; copies to the GPU will be slower")


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a parameter or buffer another value, which may be on another device."""
    value = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, value)

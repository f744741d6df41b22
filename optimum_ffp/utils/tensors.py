"""Values of parameters and buffers."""

import torch
from torch import nn
from transformers.utils import logging

from .batch_size import out_of_memory


logger = logging.get_logger(__name__)


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in pinned host memory, or in pageable memory if it is exhausted."""
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        logger.warning_once("pinned memory is exhausted; copies to the GPU will be slower")
        return tensor.clone()


def replace_value(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Replace the value of a parameter or buffer; the new value may be on another device."""
    value = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, value)

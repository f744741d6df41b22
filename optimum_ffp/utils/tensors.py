"""Values of parameters and buffers."""

import torch
from torch import nn


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a parameter or buffer another value, which may be on another device."""
    value = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    torch.utils.swap_tensors(tensor, value)

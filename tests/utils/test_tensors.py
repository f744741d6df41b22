import pytest
import torch
from torch import nn

from optimum_ffp.utils.tensors import pin, replace_value


def test_replace_value_keeps_parameter_object():
    layer, value = nn.Linear(2, 2, bias=False), torch.ones(3, 2)
    weight = layer.weight
    replace_value(weight, value)
    assert layer.weight is weight and isinstance(weight, nn.Parameter) and torch.equal(weight, value)


def test_pin_falls_back_to_pageable_memory(monkeypatch):
    tensor = torch.arange(4.0)

    def fail(self: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    copy = pin(tensor)
    assert torch.equal(copy, tensor) and copy.data_ptr() != tensor.data_ptr()

    def fail_otherwise(self: torch.Tensor) -> None:
        raise RuntimeError("Cannot access accelerator device")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail_otherwise)
    with pytest.raises(RuntimeError, match="Cannot access"):
        pin(tensor)

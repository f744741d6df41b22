"""Operations of a forward pass against those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum_ffp.engine.operations import forward_operations, head_share
from tests.helpers import make_tiny_model


def count(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt-neox", "gpt2"])
def test_operations_are_those_that_torch_counts(name, windows):
    model = make_tiny_model(name)
    in_layers, in_head = forward_operations(model, windows.shape[1])
    # torch counts attention to later tokens too.
    of_layers = count(lambda: model.base_model(windows, use_cache=False))
    assert windows.numel() * in_layers == pytest.approx(of_layers, rel=0.15)
    of_all = count(lambda: model(windows, use_cache=False))
    assert windows.numel() * in_head == of_all - of_layers
    assert head_share(model, windows.shape[1]) == pytest.approx(1 - of_layers / of_all, rel=0.15)

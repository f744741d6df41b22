"""Operations of a forward pass against those that torch counts."""

import pytest

from optimum_ffp.engine.operations import forward_operations, head_share
from tests.helpers import count_operations, make_tiny_model


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, {}) for name in ("llama", "gemma3", "phi3", "gpt-neox", "gpt2")),
        # Heads that are wider together than the hidden state.
        ("qwen3", {"head_dim": 64}),
    ],
)
def test_operations_are_those_that_torch_counts(name, sizes, windows):
    model = make_tiny_model(name, **sizes)
    model.set_attn_implementation("eager")
    in_layers, in_head = forward_operations(model, windows.shape[1])
    of_layers = count_operations(lambda: model.base_model(windows, use_cache=False))
    assert windows.numel() * in_layers == pytest.approx(of_layers, rel=0.01)
    of_all = count_operations(lambda: model(windows, use_cache=False))
    assert windows.numel() * in_head == of_all - of_layers
    assert head_share(model, windows.shape[1]) == pytest.approx(1 - of_layers / of_all, rel=0.01)

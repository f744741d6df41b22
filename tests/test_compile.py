"""A pruned model under `torch.compile`: one graph, although every layer has a shape of its own."""

import pytest
import torch

from tests.helpers import make_tiny_model, prune_to_sizes


@pytest.mark.slow
def test_torch_compile_of_forward_and_generation(windows):
    torch.compiler.reset()
    model, _ = prune_to_sizes(make_tiny_model())
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    with torch.no_grad():
        expected, tokens = model(windows).logits, model.generate(windows[:1, :6], **options)
        # Needs no C++ compiler.
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(windows).logits, expected, rtol=0, atol=1e-4)
        model.forward = torch.compile(model.forward, backend="aot_eager")
        assert torch.equal(model.generate(windows[:1, :6], cache_implementation="static", **options), tokens)

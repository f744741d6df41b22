"""A pruned model under `torch.compile`: one graph, although every layer has a shape of its own."""

import shutil

import pytest
import torch

from optimum_ffp.modeling import FFPModelForCausalLM
from tests.conftest import make_picomodel
from tests.test_nested import make_nested, random_policy


@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU backend of torch.compile needs g++")
def test_compiled_forward_and_generation_with_a_static_cache(windows, tmp_path):
    nested, _ = make_nested(make_picomodel(), windows)
    nested.materialise(random_policy(nested, 1)).save_pretrained(tmp_path)
    model = FFPModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(windows).logits
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
        tokens = model.generate(windows[:1, :6], **options)
        compiled = torch.compile(model, fullgraph=True)
        assert torch.allclose(compiled(windows).logits, expected, rtol=0, atol=1e-4)
        model.forward = torch.compile(model.forward)
        assert torch.equal(model.generate(windows[:1, :6], cache_implementation="static", **options), tokens)

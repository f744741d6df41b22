"""A pruned model under `torch.compile`: one graph, although every layer has a shape of its own."""

import os
import shutil
import subprocess

import pytest
import torch

from optimum_ffp.modeling import FFPModelForCausalLM
from tests.helpers import make_sorted_model, make_tiny_model, random_policy


pytestmark = pytest.mark.slow


def has_compiler() -> bool:
    """Whether the C++ compiler that inductor would call can be started."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and not subprocess.run([compiler, "--version"], capture_output=True).returncode


INDUCTOR = pytest.param(
    "inductor", marks=pytest.mark.skipif(not has_compiler(), reason="this backend needs a C++ compiler")
)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_forward_and_generation_with_a_static_cache(backend, windows, tmp_path):
    torch.compiler.reset()
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    sorted_model.materialize(random_policy(sorted_model, 1)).save_pretrained(tmp_path)
    model = FFPModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(windows).logits
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
        tokens = model.generate(windows[:1, :6], **options)
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        assert torch.allclose(compiled(windows).logits, expected, rtol=0, atol=1e-4)
        model.forward = torch.compile(model.forward, backend=backend)
        assert torch.equal(model.generate(windows[:1, :6], cache_implementation="static", **options), tokens)

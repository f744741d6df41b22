"""Whole prunes on a fake accelerator: the policy of the CPU, and no mixed devices."""

import json

import pytest

from tests.helpers import run_python


pytestmark = pytest.mark.slow
PRUNE = """
import json, sys
from pathlib import Path
import torch
from tests import fake_accelerator
from tests.helpers import SETTINGS, make_tiny_model, make_tokenizer, save_with_tokenizer, write_data
from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.analysis import measurements
from optimum_ffp.modeling.loading import LoadOptions, load_dense
# The CPU computes in the dtype of the weights, as the accelerator does.
measurements.compute_dtype = lambda device, dtype: dtype
torch.set_num_threads(1)
root = Path(sys.argv[2])
# Enough for every stage to run: most of the time goes into the operations of the fake accelerator.
few = {"num_samples": 4, "search_steps": 8, "distillation_passes": 1, "search_dtype": "model"}
config = FFPConfig(dataset=str(write_data(root / "data")), **SETTINGS | few)
for name, offload in json.loads(sys.argv[1]).items() if fake_accelerator.AVAILABLE else ():
    folder, found = root / name, []
    save_with_tokenizer(make_tiny_model(name), folder)
    for options in (LoadOptions(device="cpu"), LoadOptions(device="fake", offload=offload)):
        # transformers takes the saved tokenizer for another one in some families.
        model = load_dense(str(folder), options)[0]
        result = FFPPruner(model, make_tokenizer(), config, options=options).prune()
        found.append([result.policy.sizes, result.perplexity, str(result.model.device)])
    print(json.dumps(found), flush=True)
"""
# Where the weights are, for one family of each kind.
OFFLOADS = {"llama": "none", "gemma3": "none", "phi3": "host", "gpt-neox": "host", "gpt2": "host"}


@pytest.fixture(scope="module")
def prunes(tmp_path_factory):
    """What the CPU and the accelerator found, by family: in one process, as most of its time is that of imports."""
    output = run_python("-c", PRUNE, json.dumps(OFFLOADS), tmp_path_factory.mktemp("prunes"))
    if not output:
        pytest.skip("this torch has no device in Python")
    return dict(zip(OFFLOADS, map(json.loads, output.splitlines()), strict=True))


@pytest.mark.parametrize("name", OFFLOADS)
def test_prune_on_fake_accelerator_matches_cpu(name, prunes):
    (sizes, perplexity, _), (others, other, device) = prunes[name]
    assert others == sizes and other == pytest.approx(perplexity, rel=1e-3)
    # Offloaded weights stay in host memory.
    assert device == ("cpu" if OFFLOADS[name] == "host" else "fake:0")

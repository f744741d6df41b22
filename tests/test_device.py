"""Whole prunes on a pretend accelerator: the policy of the CPU, and no mixed devices."""

import json
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow
PRUNE = """
import json, sys
from pathlib import Path
import torch
from tests import pretend_card
from tests.helpers import SETTINGS, make_tiny_model, make_tokenizer, write_data
from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.analysis import measurements
from optimum_ffp.modeling.loading import LoadOptions, load_dense
# The CPU computes in the dtype of the weights, as the card does.
measurements.compute_dtype = lambda device, dtype: dtype
torch.set_num_threads(1)
root = Path(sys.argv[2])
# Enough for every stage to run: most of the time goes into the operations of the pretend card.
few = {"num_samples": 4, "search_steps": 8, "distillation_passes": 1, "search_dtype": "model"}
config = FFPConfig(dataset=str(write_data(root / "data")), **SETTINGS | few)
for name, offload in json.loads(sys.argv[1]).items() if pretend_card.AVAILABLE else ():
    folder, found = root / name, []
    make_tiny_model(name).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    for options in (LoadOptions(device="cpu"), LoadOptions(device="card", offload=offload)):
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
    """What the CPU and the card found, by family: one process for all, as most of its time is that of imports."""
    command = [sys.executable, "-c", PRUNE, json.dumps(OFFLOADS), tmp_path_factory.mktemp("card")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if not done.stdout:
        pytest.skip("this torch has no device in Python")
    return dict(zip(OFFLOADS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", OFFLOADS)
def test_prune_on_fake_accelerator_matches_cpu(name, prunes):
    (sizes, perplexity, _), (others, other, device) = prunes[name]
    assert others == sizes and other == pytest.approx(perplexity, rel=1e-3)
    # Offloaded weights stay in host memory.
    assert device == ("cpu" if OFFLOADS[name] == "host" else "card:0")

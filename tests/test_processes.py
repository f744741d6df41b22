"""Several processes: the same bytes as one, on the command line and with a process that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import digests
from tests.helpers import write_data


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
COMMAND = [sys.executable, "-m", "optimum.commands.optimum_cli", "ffp"]
OPTIONS = ["--num-samples", "9", "--search-samples", "5", "--eval-samples", "3", "--fisher-samples", "5"]
OPTIONS += ["--update-samples", "2", "--held-out-samples", "3", "--seq-len", "24", "--sparsity", "0.3"]
# This process has no native bfloat16 on any machine, those that it starts may have.
OPTIONS += ["--search-dtype", "model"]


@pytest.fixture(scope="module")
def of_one(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = write_data(tmp_path_factory.mktemp("data"))
    return folder, digests.run(str(folder))


def test_four_processes_find_the_sums_policies_and_weights_of_one(of_one):
    folder, expected = of_one
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    run = subprocess.run(
        [*command, "-m", "tests.digests", folder], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


def prune(model: Path, out: Path, data: Path, *words: str) -> list[str]:
    command = [*COMMAND, "prune", "-m", model, out]
    return list(map(str, [*command, "--dataset", data, *OPTIONS, *words]))


def test_a_killed_process_ends_all_in_one_line_and_another_number_resumes(
    save_tiny_model, data_folder, tmp_path, run_ffp
):
    model, out, steps = save_tiny_model("llama"), tmp_path / "out", ["--search-steps", "3000"]
    command = prune(model, out, data_folder, *steps, "--num-processes", "2")
    run = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    work = Path(f"{out}.work")
    while not list(work.glob("*layer-2*")) and run.poll() is None:
        time.sleep(0.05)
    workers = [one for one in psutil.Process(run.pid).children() if one.environ().get("RANK") == "1"]
    workers[0].send_signal(signal.SIGKILL)
    errors = run.communicate(timeout=120)[1]
    assert run.returncode == 2
    (line,) = [line for line in errors.splitlines() if "error:" in line or "Traceback" in line]
    assert line == (
        "error: process 2 of 2 was killed (SIGKILL), and the others ended with it; run the same command with --resume "
        "to continue"
    )
    assert not out.exists()
    few = ["--search-steps", "12"]
    assert run_ffp(*prune(model, out, data_folder, *few, "--resume")[4:])[0] == 0
    assert run_ffp(*prune(model, tmp_path / "whole", data_folder, *few)[4:])[0] == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_the_command_line_in_two_processes(save_tiny_model, data_folder, tmp_path, run_ffp):
    model, steps = save_tiny_model("gpt2"), ["--search-steps", "12"]
    assert run_ffp(*prune(model, tmp_path / "one", data_folder, *steps)[4:])[0] == 0
    # Weights on disk, which both processes read.
    command = prune(model, tmp_path / "two", data_folder, *steps, "--num-processes", "2", "--offload", "disk")
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("saved in") == 1
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "two")]
    assert written[0] == written[1]
    assert not list(tmp_path.glob("*.work"))


def test_an_error_of_all_processes_is_one_line(save_tiny_model, data_folder, tmp_path):
    command = prune(save_tiny_model("llama"), tmp_path / "out", data_folder, "--num-processes", "2")
    run = subprocess.run(
        [*command, "--sparsity", "0.99"], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 2
    found = [line for line in run.stderr.splitlines() if "error:" in line or "Traceback" in line]
    assert len(found) == 1
    assert "can't be met" in found[0]


def test_impossible_numbers_of_processes(save_tiny_model, data_folder, tmp_path, run_ffp, monkeypatch):
    words = prune(save_tiny_model("llama"), tmp_path / "out", data_folder)[4:]
    assert "must be at least 1, found 0" in run_ffp(*words, "--num-processes", "0")[2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes are started already; leave out --num-processes" in run_ffp(*words, "--num-processes", "3")[2]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    assert "2 accelerators are visible" in run_ffp(*words, "--num-processes", "3")[2]


def test_the_plan_counts_the_memory_of_all_processes(save_tiny_model, data_folder, tmp_path, run_ffp):
    words = prune(save_tiny_model("llama"), tmp_path / "out", data_folder, "--plan")[4:]
    one, two = run_ffp(*words)[1], run_ffp(*words, "--num-processes", "2")[1]
    assert "processes" not in one
    assert "2, memory is that of all" in two
    peak_of = [float(text.partition("estimated peak ")[2].split()[0]) for text in (one, two)]
    assert peak_of[1] > 1.5 * peak_of[0]


def recover(model: Path, out: Path, base: str, data: Path, *words: str) -> list[str]:
    command = [*COMMAND, "recover", "-m", model, out]
    sizes = ["--max-tokens", "1k", "--batch-tokens", "96", "--seq-len", "24", "--held-out-samples", "5", "--no-bf16"]
    options = ["--teacher", base, "--dataset", data, "--eval-samples", "3", "--device", "cpu", *sizes]
    return list(map(str, [*command, *options, *words]))


# What `accelerate launch` tells the processes of a config with FSDP.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
FSDP |= {"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
FSDP |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
# Accelerate has FSDP on accelerators alone, and must take these processes for theirs.
PRETENDED = """
from accelerate import PartialState
from accelerate.utils import DistributedType
from optimum.commands.optimum_cli import main
initialise = PartialState.__init__
def pretend(self, *args, **options):
    initialise(self, *args, **options)
    if vars(self).get("distributed_type") == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = pretend
main()
"""


def test_two_processes_recover_along_the_curve_of_one_with_ddp_and_with_fsdp(
    pruned, folder, data_folder, tmp_path, run_ffp
):
    base, records, weights = pruned[0].model_id, [], []
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    for name in ("one", "ddp", "fsdp"):
        words = recover(folder, tmp_path / name, base, data_folder, "--patience", "3")[4:]
        if name == "one":
            assert run_ffp(*words)[0] == 0
        else:
            command = [*launch, sys.executable, "-c", PRETENDED, "ffp", *words]
            command = command if name == "fsdp" else [*COMMAND, *words, "--num-processes", "2"]
            environment = ENVIRONMENT | (FSDP if name == "fsdp" else {})
            run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert run.returncode == 0, run.stderr
            assert run.stdout.count("saved in") == 1
        records += json.loads((tmp_path / name / "ffp_config.json").read_text())["recovery"]
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert [record["processes"] for record in records] == [1, 2, 2]
    for record, found in zip(records[1:], weights[1:]):
        for one, other in zip(records[0]["curve"], record["curve"], strict=True):
            assert one["tokens"] == other["tokens"]
            assert other["kl"] == pytest.approx(one["kl"], rel=1e-4)
            assert other["perplexity"] == pytest.approx(one["perplexity"], rel=1e-4)
        # The weights with the smallest divergence, not older ones.
        for name, one in weights[0].items():
            assert torch.allclose(found[name], one, atol=1e-5), name


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from optimum_ffp.modeling.offloading import shard_layers
from optimum_ffp.recovery.loss import DistillationLoss
from tests.helpers import make_tiny_model
sharded, found = len(sys.argv) > 1, []
if sharded:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
for tied in (True, False):
    teacher, student = (make_tiny_model(seed=seed, tie_word_embeddings=tied) for seed in (0, 1))
    windows = torch.arange(3, 99).view(4, 24)
    student.requires_grad_(True)
    if sharded:
        # As accelerate wraps it: apart from the layers the embeddings, and the head with the norm before it.
        embeddings, end = student.model.embed_tokens, [student.model.norm, student.lm_head]
        for modules in (*student.model.layers, *([[embeddings, *end]] if tied else [embeddings, end]), student):
            fully_shard(modules, mesh=mesh)
        whole = sum(one.numel() for one in teacher.model.layers.parameters())
        shard_layers(teacher)
        windows = windows[dist.get_rank() * 2 :][:2]
    student.forward = DistillationLoss(student, teacher)
    for again in (True, False):
        student.zero_grad()
        student(input_ids=windows, labels=windows)["loss"].backward()
    if sharded:
        assert 2 * sum(one.to_local().numel() for one in teacher.model.layers.parameters()) <= whole + 64
    gradients = [one.grad.full_tensor() if sharded else one.grad for one in student.parameters()]
    found += [float(one.norm()) for one in gradients]
if not sharded or dist.get_rank() == 0:
    print(found)
"""


def test_weights_that_fsdp_shards_get_the_gradients_of_whole_ones():
    alone = [sys.executable, "-c", SHARDED]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    both = [sys.executable, *launch, *alone, "sharded"]
    runs = [subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True) for words in (alone, both)]
    assert not any(run.returncode for run in runs), runs[-1].stderr
    expected, found = (json.loads(run.stdout) for run in runs)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)

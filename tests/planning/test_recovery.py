"""The plan of a recovery against what one measures."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.planning.machine import Machine
from optimum_ffp.planning.recovery import plan_recovery
from tests.helpers import CONFIGS, make_text, make_tiny_model, make_tokenizer, prune_by_hand


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_speed", lambda device, dtype: 1e9)


def planned(device="cpu", processes=1, parameters=10_000, **options):
    model_type, sizes = CONFIGS["llama"]
    config = RecoveryConfig(**{"max_tokens": 480, "batch_tokens": 48, "seq_len": 24} | options)
    return plan_recovery(AutoConfig.for_model(model_type, **sizes), parameters, config, device, processes)


def test_a_recovery_keeps_to_its_plan(folder, pruned, data_folder):
    sizes = {"max_tokens": 500, "batch_tokens": 96, "seq_len": 24, "eval_samples": 2, "held_out_samples": 2}
    recovery = FFPRecovery.from_pretrained(
        folder, RecoveryConfig(dataset=str(data_folder), **sizes), pruned[0].model_id, device="cpu"
    )
    plan = plan_recovery(recovery.teacher.config, recovery.student.num_parameters(), recovery.config, "cpu")
    record = recovery.recover()
    assert (plan.batch, plan.tokens, plan.forward_tokens) == (recovery.batch, record.tokens, record.all_tokens)
    assert plan.memory["moments"] == 2 * plan.memory["weights"] == 8 * recovery.student.num_parameters()
    assert plan.memory["dense model"] == 4 * recovery.teacher.num_parameters()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gpt-neox"])
def test_families_with_fused_projections_have_plans_too(name):
    model_type, sizes = CONFIGS[name]
    shape, model = AutoConfig.for_model(model_type, **sizes), make_tiny_model(name)
    whole, smaller = (
        plan_recovery(shape, int(share * model.num_parameters()), RecoveryConfig(max_tokens=100, seq_len=24), "cpu")
        for share in (1, 0.9)
    )
    assert smaller.peak_bytes < whole.peak_bytes and smaller.operations < whole.operations
    assert "it fits into memory" in whole.describe()


def test_what_options_save():
    usual = planned()
    assert planned(gradient_checkpointing=True).memory["activations"] < usual.memory["activations"]
    assert planned(gradient_checkpointing=True).operations > usual.operations
    assert planned(batch_size=2).memory["activations"] == 2 * usual.memory["activations"]
    adapters = planned(lora=2)
    assert adapters.memory["moments"] < usual.memory["moments"] and adapters.disk < usual.disk
    assert planned(bf16=True).memory["dense model"] == usual.memory["dense model"] / 2
    # DDP has buckets for gradients, and every process its own of everything.
    two = planned(processes=2)
    assert two.memory["gradients"] == 2 * usual.memory["gradients"] and two.peak_bytes > 2 * usual.peak_bytes
    assert two.batch.windows == 2 and two.operations == usual.operations


def test_what_does_not_fit_is_said(monkeypatch):
    machine = Machine(torch.device("cuda"), 2**35, 2**10)
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_machine", lambda *_: machine)
    monkeypatch.setattr("optimum_ffp.planning.recovery.multiplies", lambda *_: True)
    monkeypatch.setattr("optimum_ffp.planning.recovery.compute_dtype", lambda device, dtype: dtype)
    plan = planned(device="cuda")
    (warning,) = plan.warnings
    assert "about 0.00 GiB on cuda, and 0.00 GiB are free" in warning and "gradient_checkpointing" in warning
    assert plan.dtype == torch.bfloat16 and warning in plan.describe()
    # A card each.
    assert "the 0.002 TFLOP/s" in planned(device="cuda", processes=2).describe()


MEASURE = """
import json, sys, psutil
from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.planning.recovery import plan_recovery
student, teacher, data, options = *sys.argv[1:4], json.loads(sys.argv[4])
sizes = {"seq_len": 512, "max_tokens": 4096, "batch_tokens": 1024, "evaluations": 1, "held_out_samples": 2}
config = RecoveryConfig(dataset=data, eval_samples=2, learning_rate=1e-5, **sizes, **options)
recovery = FFPRecovery.from_pretrained(student, config, teacher, device="cpu")
plan = plan_recovery(recovery.teacher.config, recovery.student.num_parameters(), config, "cpu")
before = psutil.Process().memory_info().rss - plan.memory["dense model"] - plan.memory["weights"]
recovery.recover()
import resource
print(json.dumps([1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(plan.memory.values())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["kept", "again"])
def test_the_estimate_is_what_is_measured(tmp_path, options):
    """On a model whose weights, activations and logits are large beside what Python and torch take."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=16384, max_position_embeddings=512)
    dense = LlamaForCausalLM(config)
    dense.save_pretrained(tmp_path / "dense")
    student, pruner = prune_by_hand(dense)
    student.save_pretrained(tmp_path / "pruned")
    for name in ("dense", "pruned"):
        make_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text(make_text(20_000))
    words = [sys.executable, "-c", MEASURE, *(tmp_path / name for name in ("pruned", "dense", "text.txt"))]
    done = subprocess.run([*words, json.dumps(options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert 0.7 < estimated / measured < 1.5, (measured, estimated)

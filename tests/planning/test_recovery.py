"""The plan of a recovery against what one measures."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.errors import FFPError
from optimum_ffp.modeling.loading import LoadOptions, empty_model, read_pruned_config
from optimum_ffp.planning.machine import Machine
from optimum_ffp.planning.recovery import plan_recovery
from optimum_ffp.recovery.loss import DistillationLoss
from tests.helpers import CONFIGS, make_text, make_tiny_model, make_tokenizer, prune_by_hand


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_speed", lambda device, dtype: 1e9)


def planned(device="cpu", count=1, kept=0.8, name="llama", dtype="auto", machines=1, sharded=False, **options):
    model_type, sizes = CONFIGS[name]
    text = {"dataset": "c4", "max_tokens": 480, "batch_tokens": 48, "seq_len": 24}
    config = RecoveryConfig(**text | options)
    dense = empty_model(AutoConfig.for_model(model_type, **sizes))
    return plan_recovery(dense, dense, config, device, dtype, count, kept, machines, sharded)


def test_a_recovery_keeps_to_its_plan(folder, pruned, data_folder):
    sizes = {"max_tokens": 500, "batch_tokens": 96, "seq_len": 24, "eval_samples": 2, "held_out_samples": 2}
    recovery = FFPRecovery.from_pretrained(
        folder, RecoveryConfig(dataset=str(data_folder), **sizes), pruned[0].model_id, device="cpu"
    )
    student = empty_model(read_pruned_config(str(folder), LoadOptions()))
    plan = plan_recovery(student, empty_model(recovery.teacher.config), recovery.config, "cpu")
    record = recovery.recover()
    assert (plan.batch, plan.tokens, plan.forward_tokens) == (recovery.batch, record.tokens, record.all_tokens)
    assert plan.memory["moments"] == 2 * plan.memory["weights"] == 8 * recovery.student.num_parameters()
    assert plan.memory["dense model"] == 4 * recovery.teacher.num_parameters()


def test_operations_are_those_of_both_models(windows):
    teacher, student = make_tiny_model(), prune_by_hand(make_tiny_model())[0].requires_grad_(True)
    plan = plan_recovery(student, teacher, RecoveryConfig(dataset="c4", max_tokens=480, seq_len=24), "cpu")
    student.forward = DistillationLoss(student, teacher)
    with FlopCounterMode(display=False) as counter:
        student(input_ids=windows, labels=windows)["loss"].backward()
    assert plan.operations / plan.tokens == pytest.approx(counter.get_total_flops() / windows.numel(), rel=0.1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gpt-neox", "opt"])
def test_smaller_models_of_all_kinds_need_less(name):
    whole, smaller = planned(name=name, kept=1.0), planned(name=name, kept=0.9)
    assert whole.memory["weights"] == 4 * make_tiny_model(name).num_parameters()
    assert smaller.peak_bytes < whole.peak_bytes and smaller.operations < whole.operations
    assert "it fits into memory" in whole.describe()


def test_what_options_save():
    usual = planned()
    assert planned(gradient_checkpointing=True).memory["activations"] < usual.memory["activations"]
    assert planned(gradient_checkpointing=True).operations > usual.operations
    assert planned(batch_size=2).memory["activations"] == pytest.approx(2 * usual.memory["activations"], abs=2)
    adapters = planned(lora=2)
    assert adapters.memory["moments"] < usual.memory["moments"] and adapters.disk < usual.disk
    assert adapters.operations < usual.operations
    assert planned(patience=2).disk > usual.disk
    assert planned(hidden_weight=1.0).memory["hidden states"] > usual.memory["hidden states"] == 0
    # DDP has buckets for gradients, and every process its own of everything.
    two = planned(count=2)
    assert two.memory["gradients"] == 2 * usual.memory["gradients"] and two.peak_bytes > 2 * usual.peak_bytes
    assert two.batch.windows == 2 and two.operations == usual.operations
    assert "writing the text" in planned(dataset="self").describe() and "writing" not in usual.describe()


def test_several_machines_and_fsdp_divide_the_work_and_the_models(monkeypatch):
    usual, many = planned(), planned(count=2, machines=3)
    assert many.batch.windows == 6 and many.memory == planned(count=2).memory
    alone, divided = planned(sharded=True), planned(count=2, machines=3, sharded=True)
    for part in ("weights", "moments", "gradients"):
        assert 6 * divided.memory[part] == pytest.approx(usual.memory[part], abs=6)
        assert alone.memory[part] == usual.memory[part]
    layers = make_tiny_model().model.layers
    in_layers = 4 * sum(one.numel() for one in layers.parameters())
    assert usual.memory["dense model"] - divided.memory["dense model"] == pytest.approx(5 / 6 * in_layers, abs=6)
    # Both are measured whole before.
    deep = empty_model(AutoConfig.for_model("llama", **CONFIGS["llama"][1] | {"num_hidden_layers": 40}))
    large = plan_recovery(
        deep, deep, RecoveryConfig(dataset="c4", seq_len=2), "cpu", count=64, machines=1, sharded=True
    )
    assert large.memory == {"dense model": 4 * deep.num_parameters(), "weights": 4 * deep.num_parameters()}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr("optimum_ffp.utils.processes._several", lambda: True)
    monkeypatch.setattr("optimum_ffp.utils.processes.count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert planned(count=2, machines=None, sharded=None).memory == planned(count=2, machines=2, sharded=True).memory
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(FFPError, match="FSDP 1 can't be used; set fsdp_version: 2 in the config of accelerate"):
        planned(sharded=None)


def test_weights_that_are_not_trained_stay_in_their_dtype(monkeypatch):
    usual, halved = planned(bf16=False), planned(bf16=True)
    assert halved.memory["dense model"] == usual.memory["dense model"] / 2
    assert halved.memory["weights"] == usual.memory["weights"] == 2 * halved.memory["weights in bfloat16"]
    for module in ("planning.recovery", "utils.precision"):
        monkeypatch.setattr(f"optimum_ffp.{module}.compute_dtype", lambda device, dtype: dtype)
    sizes = CONFIGS["llama"][1] | {"dtype": torch.bfloat16}
    dense = empty_model(AutoConfig.for_model("llama", **sizes))
    configs = [RecoveryConfig(dataset="c4", bf16=True, lora=rank, seq_len=24) for rank in (0, 2)]
    plans = [plan_recovery(dense, dense, config, "cpu") for config in configs]
    assert plans[0].memory["weights in bfloat16"] > plans[1].memory["weights in bfloat16"] == 0
    assert plans[1].memory["weights"] < plans[0].memory["weights"]


def test_what_does_not_fit_is_said(monkeypatch):
    machine = Machine(torch.device("cuda"), 2**10, 2**10)
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_machine", lambda *_: machine)
    monkeypatch.setattr("optimum_ffp.planning.recovery.computes_in_bfloat16", lambda *_: True)
    plan = planned(device="cuda")
    on_card, on_host = plan.warnings
    assert "about 0.00 GiB of memory on cuda, and 0.00 GiB are free" in on_card and "gradient_checkpointing" in on_card
    assert "of memory, and 0.00 GiB are free" in on_host
    assert plan.precision.products == torch.bfloat16 and on_card in plan.describe()
    # A card each.
    assert "the 0.002 TFLOP/s" in planned(device="cuda", count=2).describe()


MEASURE = """
import json, sys, psutil
from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.planning.recovery import plan_recovery
student, teacher, data = sys.argv[1:]
sizes = {"seq_len": 512, "max_tokens": 1024, "batch_tokens": 512, "evaluations": 1, "held_out_samples": 1}
config = RecoveryConfig(dataset=data, eval_samples=1, hidden_weight=1.0, learning_rate=1e-5, warmup_ratio=0.0, **sizes)
recovery = FFPRecovery.from_pretrained(student, config, teacher, device="cpu")
plan = plan_recovery(recovery.student, recovery.teacher, config, "cpu")
before = psutil.Process().memory_info().rss - plan.memory["dense model"] - plan.memory["weights"]
recovery.recover()
import resource
print(json.dumps([1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(plan.memory.values())]))
"""


@pytest.mark.slow
def test_the_estimate_is_what_is_measured(tmp_path):
    """On a model whose weights, activations and logits are large beside what Python and torch take."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=16384, max_position_embeddings=512)
    dense = LlamaForCausalLM(config)
    dense.save_pretrained(tmp_path / "dense")
    student, _ = prune_by_hand(dense)
    student.save_pretrained(tmp_path / "pruned")
    (tmp_path / "pruned" / "ffp_config.json").write_text('{"ffp_version": "0.1", "policy": {}}')
    for name in ("dense", "pruned"):
        make_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text(make_text(20_000))
    words = [sys.executable, "-c", MEASURE, *(tmp_path / name for name in ("pruned", "dense", "text.txt"))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert 0.7 < estimated / measured < 1.5, (measured, estimated)


def test_scores_of_eager_attention_are_kept_for_the_backward_pass():
    """Gemma 2 caps its scores, so that it can't use memory-efficient attention."""
    eager = planned(name="gemma2", kept=1.0).memory["activations"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_ffp.planning.recovery.SCORE", 0)
        without = planned(name="gemma2", kept=1.0).memory["activations"]
    sizes = CONFIGS["gemma2"][1]
    scores = sizes["num_hidden_layers"] * sizes["num_attention_heads"] * 24**2
    assert eager - without == pytest.approx(8 * scores, abs=2)

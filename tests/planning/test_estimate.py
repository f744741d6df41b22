import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_ffp import FFPConfig, FFPError, FFPPruner, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions, empty_model
from optimum_ffp.planning.estimate import Machine, estimate_recovery, format_range, with_time
from optimum_ffp.planning.make import make_plans
from optimum_ffp.recovery.plan import make_recovery_plan
from tests.helpers import (
    make_pruner,
    make_text,
    make_tokenizer,
    prune_to_sizes,
    run_python,
    save_with_tokenizer,
    write_record,
)


GIB = 2**30
AUTO = LoadOptions(offload="auto")
LLAMA_2_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="float16")


def gpu(gibibytes, host=64):
    return Machine(torch.device("cuda"), host * GIB, gibibytes * GIB)


def plan(machine=None, options=AUTO, saves_work=True, **config):
    (found,), estimate = make_plans([FFPConfig(**config)], empty_model(LLAMA_2_7B), options, machine, saves_work)
    return found, estimate.warnings


@pytest.mark.parametrize(
    ("machine", "offload"), [(gpu(24), "none"), (gpu(12), "host"), (gpu(12, host=16), "disk")], ids=str
)
def test_auto_offload_uses_fastest_device_with_enough_memory(machine, offload):
    found, warnings = plan(machine)
    assert (found.offload, warnings) == (offload, [])
    # Without a work folder there is nowhere for what doesn't fit into memory.
    without, _ = plan(machine, saves_work=False)
    assert without.offload == offload.replace("disk", "host")


@pytest.mark.parametrize(
    ("machine", "calibration", "lora"),
    [(gpu(140), "model", 0), (gpu(60), "model", 32), (gpu(24), "layers", 0)],
    ids=str,
)
def test_default_calibration_is_strongest_that_fits_in_memory(machine, calibration, lora):
    pytest.importorskip("peft")
    found, warnings = plan(machine)
    assert (found.calibration, found.lora, found.offload, warnings) == (calibration, lora, "none", [])


def test_lora_is_disabled_for_calibrations_without_whole_model_training():
    pytest.importorskip("peft")
    found, _ = plan(gpu(140), calibration="ridge", lora=8)
    assert (found.calibration, found.lora) == ("ridge", 0)


def test_whole_model_calibration_disables_offloading():
    found, warnings = plan(gpu(24), calibration="model")
    assert (found.calibration, found.offload) == ("model", "none") and warnings
    with pytest.raises(FFPError, match="calibration"):
        plan(gpu(24), LoadOptions(offload="host"), calibration="model")


def test_training_on_second_gpu_is_rejected_only_if_model_is_trained():
    second = torch.device("cuda", 1)
    with pytest.raises(FFPError, match="CUDA_VISIBLE_DEVICES=1"):
        plan(replace(gpu(140), device=second))
    found, warnings = plan(replace(gpu(24), device=second))
    assert (found.calibration, warnings) == ("layers", [])


@pytest.mark.parametrize("config", [{"dataset": "self"}, {"speedup": 1.3}])
def test_self_generated_text_and_speedup_budget_disable_offloading(config):
    found, (warning,) = plan(gpu(12), **config)
    assert found.offload == "none" and "of memory of cuda" in warning and "12.00 GiB is free" in warning


@pytest.mark.parametrize(
    ("config", "options", "word"),
    [
        ({"sparsity": 0.95}, AUTO, "can't be met"),
        ({"seq_len": 5000}, AUTO, "positions"),
        ({"num_samples": 2, "seq_len": 2}, AUTO, "too few"),
        ({}, LoadOptions("cpu", offload="host"), "accelerators"),
    ],
)
def test_plan_rejects_invalid_options_like_prune(config, options, word):
    with pytest.raises(FFPError, match=word):
        plan(None, options, **config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "paper"},
        {"preset": "paper", "method": "uniform"},
        {"method": "evolutionary"},
        {"method": "no-search", "depth": "sublayers"},
        {"method": None, "sparsity": 0.3},
        {"method": None, "params": "23k"},
    ],
)
def test_estimated_tokens_bound_tokens_read(save_tiny_model, data_folder, options):
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    _, estimate = make_plans([pruner.measured.plan.asked], pruner.model, AUTO)
    assert estimate.tokens / 3 < pruner.prune().tokens <= estimate.tokens


def test_time_is_estimated_where_one_layer_tells_it(save_tiny_model, data_folder):
    def time_of(name, **options):
        config = FFPConfig(dataset=str(data_folder), **options)
        return FFPPruner.plan(save_tiny_model(name), config, device="cpu").seconds

    low, high = time_of("llama", sparsity=0.2)
    assert 0 < low < high
    # The experts that a token passes depend on the weights.
    assert time_of("mixtral", experts=6) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.2, "1 to 2 seconds"), (90, "90 to 180 seconds"), (7000, "117 to 233 minutes")]
)
def test_range_of_time_is_readable(seconds, text):
    assert format_range(seconds, 2 * seconds) == text


MEASURE = """
import json, sys
from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning.estimate import PROCESS_BYTES
from optimum_ffp.planning.make import make_plans
model, data, calibration = sys.argv[1:]
samples = ("num_samples", "fisher_samples", "search_samples", "held_out_samples", "eval_samples")
sizes = {"seq_len": 1024} | dict.fromkeys(samples, 2)
quick = {"search_steps": 5, "criterion": "wanda", "calibration": calibration}
pruner = FFPPruner.from_pretrained(model, FFPConfig(dataset=data, **sizes, **quick), device="cpu")
_, estimate = make_plans([pruner.measured.plan.asked], pruner.model, LoadOptions("cpu", offload="none"))
peaks = pruner.prune().cost.peak_bytes
# What Python and torch take differs by machine. While text is read, the weights are pages of their file.
print(json.dumps([max(peaks.values()) - peaks["data"], estimate.host - PROCESS_BYTES]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("calibration", ["layers", "model"])
def test_estimated_prune_memory_matches_measured_peak(calibration, tmp_path):
    """On a model whose weights, matrices and logits are large beside what Python and torch take."""
    sizes = {"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=8192, max_position_embeddings=1024)
    save_with_tokenizer(LlamaForCausalLM(config), tmp_path / "model")
    (tmp_path / "text.txt").write_text(make_text(14_000))
    # A process of its own: what other tests leave behind must not count.
    output = run_python("-c", MEASURE, tmp_path / "model", tmp_path / "text.txt", calibration)
    measured, estimated = json.loads(output.splitlines()[-1])
    assert 0.6 < estimated / measured < 1.6, (measured, estimated)


def recovery(**options):
    dense = empty_model(LLAMA_2_7B)
    found = make_recovery_plan(RecoveryConfig(dataset="c4", **options), "pruned", LoadOptions())
    return estimate_recovery(dense, dense, found, LoadOptions(), machine=gpu(80))


def test_recovery_memory_covers_weights_gradients_and_adam_moments():
    whole, parameters = recovery(), empty_model(LLAMA_2_7B).num_parameters()
    assert 16 * parameters < whole.device < 24 * parameters and whole.warnings
    for option in ({"lora": 8}, {"gradient_checkpointing": True}):
        assert recovery(**option).device < whole.device
    assert recovery(lora=8).warnings == [] and recovery(lora=8).disk < whole.disk
    # Nothing as large is probed either.
    assert with_time(whole, empty_model(LLAMA_2_7B), 2048).seconds == []


MEASURE_RECOVERY = """
import json, resource, sys, psutil
from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning.estimate import PROCESS_BYTES, estimate_recovery
student, teacher, data = sys.argv[1:]
sizes = {"seq_len": 512, "max_tokens": 1024, "batch_tokens": 512, "evaluations": 1, "held_out_samples": 1}
config = RecoveryConfig(dataset=data, eval_samples=1, learning_rate=1e-5, **sizes)
recovery = FFPRecovery.from_pretrained(student, config, teacher, device="cpu")
estimate = estimate_recovery(recovery.student, recovery.teacher, recovery.plan, LoadOptions("cpu"))
loaded = sum(model.get_memory_footprint() for model in (recovery.student, recovery.teacher))
before = psutil.Process().memory_info().rss - loaded
recovery.recover()
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([peak - before, estimate.host - PROCESS_BYTES]))
"""


@pytest.mark.slow
def test_estimated_recovery_memory_matches_measured_peak(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    dense = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=16384, max_position_embeddings=512))
    dense.save_pretrained(tmp_path / "dense")
    prune_to_sizes(dense)[0].save_pretrained(tmp_path / "pruned")
    provenance = {"base_model": "dense", "parameters": {"dense": dense.num_parameters(), "pruned": 1}}
    write_record(tmp_path / "pruned", provenance=provenance, recovery=[], files=[])
    for name in ("dense", "pruned"):
        make_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text(make_text(20_000))
    paths = [tmp_path / name for name in ("pruned", "dense", "text.txt")]
    measured, estimated = json.loads(run_python("-c", MEASURE_RECOVERY, *paths).splitlines()[-1])
    assert 0.6 < estimated / measured < 1.6, (measured, estimated)

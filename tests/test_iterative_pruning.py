"""Pruned models that are pruned further: sizes, shares and figures are those of the original dense model."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from optimum_ffp.evaluation import window_losses
from optimum_ffp.evaluation.size import kv_cache_bytes
from optimum_ffp.modeling.families import decoder_layers, find_family
from tests.helpers import LAYOUTS, make_deep_model, make_pruner, save_with_tokenizer, step_parameters


QUICK = {"method": "no-search", "calibration": "none"}


def mask_missing_columns(dense, pruned) -> None:
    """Zeroes the columns of the dense model's output projections that a pruned model without calibration lacks."""
    family = find_family(dense.config)
    for layer, smaller in zip(decoder_layers(dense), decoder_layers(pruned)):
        for name in (family.attention_output, family.ffn_output):
            weight, kept = (
                module.weight.T if isinstance(module, Conv1D) else module.weight
                for module in (layer.get_submodule(name), smaller.get_submodule(name))
            )
            is_kept = (weight[:, :, None] == kept[:, None]).all(0).any(1)
            assert is_kept.sum() == kept.shape[1]
            weight.data[:, ~is_kept] = 0


@pytest.mark.parametrize(
    "name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gemma3", "qwen3", "olmo2"))]
)
def test_model_pruned_twice_equals_masked_dense_model(save_tiny_model, data_folder, tmp_path, windows, name):
    base = save_tiny_model(name)
    once = make_pruner(base, data_folder, sparsity=0.25, **QUICK)
    first = once.prune()
    once.save_pretrained(tmp_path / "once")
    twice = make_pruner(tmp_path / "once", data_folder, sparsity=0.45, base_model=str(base), **QUICK)
    assert torch.allclose(twice.model(windows).logits, first.model(windows).logits, atol=1e-6)
    second = twice.prune()
    twice.save_pretrained(tmp_path / "twice")
    dense = AutoModelForCausalLM.from_pretrained(base)
    assert second.dense_parameters == dense.num_parameters()
    step = min(step_parameters(unit) for unit in twice.measured.units)
    total = sum(unit.parameters for unit in twice.measured.units)
    assert 0 <= second.policy.sparsity - 0.45 < step / total
    assert dense.num_parameters() - second.parameters == total - second.policy.kept_parameters
    assert all(after <= before for before, after in zip(first.policy.retentions, second.policy.retentions))
    assert second.losses["dense"] == [pytest.approx(window_losses(dense, second.test.tokens).tolist(), rel=1e-5)]
    mask_missing_columns(dense, second.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice", trust_remote_code=True)
    for model in (second.model, loaded):
        assert torch.allclose(model(windows).logits, dense(windows).logits, atol=1e-5)


def test_budgets_of_second_prune_refer_to_dense_model(save_tiny_model, data_folder, tmp_path):
    base = save_tiny_model()
    once = make_pruner(base, data_folder, sparsity=0.2, attention="kv-groups", **QUICK)
    once.prune()
    once.save_pretrained(tmp_path / "once")
    twice = make_pruner(tmp_path / "once", data_folder, base_model=str(base), attention="kv-groups", **QUICK)
    dense = AutoModelForCausalLM.from_pretrained(base)
    sizes = {
        "params": (lambda model: model.num_parameters(), 24000),
        "memory": (lambda model: 4 * model.num_parameters() + 24 * kv_cache_bytes(model), 110000),
        "kv_cache": (lambda model: kv_cache_bytes(model) / kv_cache_bytes(dense), 0.5),
    }
    for name, (size_of, allowed) in sizes.items():
        result = twice.prune(context=24, **{name: allowed})
        twice.save_pretrained(tmp_path / name)
        (limit,) = result.search.budget
        measured = size_of(FFPModelForCausalLM.from_pretrained(tmp_path / name))
        assert measured == pytest.approx(limit["reached"]) and 0.9 * allowed < measured <= allowed
        assert limit["dense"] == pytest.approx(size_of(dense))
    # As wide as the narrowest layer, at most.
    result = twice.prune(method="homogeneous", sparsity=0.5)
    assert type(result.model) is type(dense) and len({*result.policy.sizes}) == 2


def test_offload_of_pruned_model_is_rejected(pruned):
    pruner, folder = pruned
    with pytest.raises(FFPError, match="leave out offload"):
        FFPPruner.from_pretrained(folder, FFPConfig(base_model=pruner.model_id), device="cpu", offload="disk")


def test_quantized_pruned_model_is_rejected_before_loading(pruned, tmp_path):
    pruner, folder = pruned
    for name, source in (("quantized", folder), ("dense", pruner.model_id)):
        shutil.copytree(source, tmp_path / name)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    (tmp_path / "dense" / "model.safetensors").unlink()
    with pytest.raises(FFPError, match="quantized is quantized"):
        FFPPruner.from_pretrained(tmp_path / "quantized", FFPConfig(base_model=str(tmp_path / "dense")), device="cpu")


@pytest.mark.slow
def test_recovered_model_is_pruned_further_by_command_line(run_ffp, save_tiny_model, data_folder, tmp_path):
    base, once, recovered, twice, same = (save_tiny_model(), *(tmp_path / name for name in ("a", "b", "c", "d")))
    options = ["--dataset", data_folder, "--seq-len", 24, "--device", "cpu"]
    samples = ["--num-samples", 8, "--search-samples", 2, "--eval-samples", 3]
    assert run_ffp("prune", "-m", base, once, "--sparsity", 0.25, "--calibration", "ridge", *samples, *options)[0] == 0
    (tmp_path / "options.json").write_text('{"evaluations": 2, "held_out_samples": 4}')
    training = ["--teacher", base, "--config", tmp_path / "options.json", "--max-tokens", 500, "--batch-tokens", 96]
    code, _, errors = run_ffp("recover", "-m", once, recovered, *training, *options)
    assert code == 0, errors
    command = ["prune", "-m", recovered, twice, "--sparsity", 0.4, "--calibration", "model", *samples, *options]
    code, _, errors = run_ffp(*command)
    assert code == 2 and "--base-model" in errors
    code, _, errors = run_ffp(*command, "--base-model", base, "--sparsity", 0.1)
    assert code == 2 and "nothing to remove" in errors
    code, output, errors = run_ffp(*command, "--base-model", base)
    assert code == 0 and f"--teacher {base}" in output, errors
    record = json.loads((twice / "ffp_config.json").read_text())
    assert (record["provenance"]["base_model"], record["provenance"]["pruned_from"]) == (base.name, "b")
    assert "pruned further" in (twice / "README.md").read_text()
    first, second = (json.loads((folder / "ffp_config.json").read_text()) for folder in (once, twice))
    expected = pytest.approx(first["provenance"]["perplexity"]["dense"], rel=1e-6)
    assert second["provenance"]["perplexity"]["dense"] == expected
    assert first["provenance"]["samples"][0]["dense"] == second["provenance"]["samples"][0]["dense"]
    # The dense model can be pruned to the same sizes at once.
    code, _, errors = run_ffp(
        "prune", "-m", base, same, "--policy", twice, "--calibration", "none", *samples, *options
    )
    assert code == 0, errors
    assert json.loads((same / "ffp_config.json").read_text())["policy"] == record["policy"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["none", "sublayers"])
def test_sublayers_removed_by_first_prune_stay_removed(tmp_path, data_folder, windows, depth):
    dense = make_deep_model("gemma3")
    save_with_tokenizer(dense, tmp_path / "dense")
    units = make_pruner(tmp_path / "dense", data_folder).measured.units
    gone = (3, 4, 5, 6)
    rows = [
        {"layer": unit.layer, "unit": unit.kind, "items": unit.groups, "group": unit.group}
        | {"kept": 0 if index in gone else unit.groups - index % 2}
        for index, unit in enumerate(units)
    ]
    (tmp_path / "policy.json").write_text(json.dumps(rows))
    policy = {"policy": str(tmp_path / "policy.json"), "method": None, "sparsity": None}
    # With first tokens, layer 3 would be removed too.
    once = make_pruner(tmp_path / "dense", data_folder, calibration="none", first_tokens=0, **policy)
    first = once.prune()
    once.save_pretrained(tmp_path / "once")
    options = {"sparsity": 0.7, "base_model": str(tmp_path / "dense"), "depth": depth, "calibration": "layers"}
    twice = make_pruner(tmp_path / "once", data_folder, first_tokens=0, **options)
    assert torch.allclose(twice.model(windows).logits, first.model(windows).logits, atol=1e-6)
    second = twice.prune()
    assert all(second.policy.sizes[index] == 0 for index in gone) and second.policy.kept_layers(4) == [0, 1, 3]
    assert 0 <= second.policy.sparsity - 0.7 < 0.05
    twice.save_pretrained(tmp_path / "twice")
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert float(window_losses(loaded, second.test.tokens).mean().exp()) == pytest.approx(second.perplexity, rel=1e-5)

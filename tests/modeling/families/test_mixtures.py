"""Mixtures of experts, which lose the same number of experts in every layer and stay plain checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner, evaluate
from optimum_ffp.allocation.homogeneous import homogeneous_policies
from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.analysis.experts import order_experts
from optimum_ffp.checkpoint import saving
from optimum_ffp.commands.records import prune_records
from optimum_ffp.commands.summary import summarize
from optimum_ffp.compression.sorted_model import SortedModel
from optimum_ffp.export.architectures import check_exportable
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.modeling.loading import LoadOptions, empty_model, shape_of
from optimum_ffp.planning.make import make_plans
from optimum_ffp.search.runner import find_budget
from optimum_ffp.utils.record import Record
from optimum_ffp.utils.resume import Journal
from tests.helpers import (
    MIXTURES,
    layerwise_of,
    make_tiny_model,
    make_tokenizer,
    plan_of,
    prune_experts,
    record_inputs,
    save_with_tokenizer,
)


MODELS = {}
OPTIONS = {"seq_len": 24, "num_samples": 8, "search_samples": 2, "eval_samples": 3, "calibration": "none"}


def pruner_of(name, data, folder=None, work=None, offload="none", **options) -> FFPPruner:
    config = FFPConfig(dataset=str(data), **OPTIONS | options)
    if folder is None:
        return FFPPruner(make_tiny_model(name), make_tokenizer(), config)
    save_with_tokenizer(make_tiny_model(name), folder)
    return FFPPruner.from_pretrained(folder, config, work, device="cpu", offload=offload)


def mask_router_logits(monkeypatch, model, orders, kept):
    """Set the logits of the experts that go, and their corrections, to minus infinity."""
    removed = {}
    for unit, order in zip(find_units(model, find_family(model.config)), orders):
        router, first = unit.slices[0].module, unit.unit.groups // unit.sections * torch.arange(unit.sections)
        removed[router.weight] = gone = (order[kept // unit.sections :] + first).flatten()
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[gone] = -torch.inf
    linear = functional.linear

    def masked(inputs, weight, bias=None):
        logits = linear(inputs, weight, bias)
        if weight in removed:
            logits[..., removed[weight]] = -torch.inf
        return logits

    monkeypatch.setattr(functional, "linear", masked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_sliced_mixture_equals_dense_model_with_masked_router(monkeypatch, windows, name, dtype):
    pruned, orders, policy = prune_experts(make_tiny_model(name).to(dtype))
    dense = make_tiny_model(name).to(dtype)
    mask_router_logits(monkeypatch, dense, orders, 6)
    expected = dense(windows).logits
    monkeypatch.undo()
    difference = (pruned(windows).logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    # In bfloat16 the outputs of experts are added in another order, which sends a few tokens to other experts.
    assert difference.max() < 2e-6 if dtype == torch.float32 else difference.median() < 0.02
    assert type(pruned) is type(dense)
    # With a cache, token by token.
    prompt = windows[:1, :4]
    text = pruned.generate(prompt, do_sample=False, max_new_tokens=12, min_new_tokens=12)
    assert text.equal(pruned.generate(prompt, do_sample=False, max_new_tokens=12, min_new_tokens=12, use_cache=False))


@pytest.mark.parametrize("name", MIXTURES)
def test_expert_units_include_router_rows(name):
    model = make_tiny_model(name)
    units = find_units(model, find_family(model.config))
    smaller = MIXTURES[name][1] | {find_family(model.config).count: units[0].unit.groups - units[0].sections}
    config = AutoConfig.for_model(MIXTURES[name][0], **smaller)
    removed = model.num_parameters() - AutoModelForCausalLM.from_config(config).num_parameters()
    assert removed == sum(unit.unit.group_parameters * unit.sections for unit in units)


@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3"])
def test_expert_scores_are_mean_gate_times_output_norm(windows, name):
    model = make_tiny_model(name)
    layerwise, layer = layerwise_of(model), model.model.layers[1].mlp
    units, plan, hidden = find_units(model, layerwise.family), plan_of(model), record_inputs(model, layer, windows)
    _, gates, index = layer.gate(hidden)
    scores = torch.zeros(units[0].unit.groups)
    for expert in range(len(scores)):
        tokens, places = torch.where(index == expert)
        gate, up = (hidden[tokens] @ layer.experts.gate_up_proj[expert].T).chunk(2, -1)
        output = (functional.silu(gate) * up) @ layer.experts.down_proj[expert].T
        shares = gates[tokens, places] / gates[tokens].sum(-1)
        scores[expert] = (shares * output.norm(dim=-1)).mean() if len(tokens) else 0
    orders, _ = order_experts(layerwise, units, plan, windows, Journal())
    order = orders[[unit.unit.layer for unit in units].index(1)]
    expected = scores.view(units[0].sections, -1).argsort(dim=1, descending=True, stable=True).T
    assert order.equal(expected) and len(scores.unique()) > 6


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["qwen2-moe", "deepseek-v3"])
def test_budget_keeps_largest_number_of_experts_that_fits(name, data):
    model = MODELS[name] = MODELS.get(name) or make_tiny_model(name)
    units = [unit.unit for unit in find_units(model, find_family(model.config))]
    count, step, fewest = units[0].groups, units[0].multiple, units[0].required
    attribute = find_family(model.config).count
    sizes = {
        kept: AutoModelForCausalLM.from_config(
            AutoConfig.for_model(MIXTURES[name][0], **MIXTURES[name][1] | {attribute: kept})
        ).num_parameters()
        for kept in range(fewest, count + 1, step)
    }
    budget = {
        "experts": data.draw(st.integers(fewest, count - 1)),
        "params": data.draw(st.integers(sizes[fewest], sizes[count] - 1)),
        "sparsity": data.draw(st.integers(1, 100 * (count - fewest) // count).map(lambda share: share / 100)),
    }
    budget = {option: budget[option] for option in data.draw(st.sets(st.sampled_from([*budget]), min_size=1))}
    (policy,) = homogeneous_policies(find_budget(model, units, FFPConfig(**budget), budget))
    per_expert = (sizes[count] - sizes[fewest]) / (count - fewest)
    fits = [
        kept
        for kept, size in sizes.items()
        if kept <= budget.get("experts", count)
        and size <= budget.get("params", size)
        and (sizes[count] - size) >= budget.get("sparsity", 0) * per_expert * count - 1e-6
    ]
    assert set(policy.sizes) == {fits[-1]}


@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3", "granitemoe"])
def test_pruned_mixture_checkpoint_has_dense_class(data_folder, tmp_path, windows, name):
    pruner = pruner_of(name, data_folder, tmp_path / "dense", experts=6)
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    family, saved = find_family(result.model.config), json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved[family.count] == 6 and "auto_map" not in saved
    plain = AutoModelForCausalLM.from_config(result.model.config)
    plain.save_pretrained(tmp_path / "plain")
    shapes = [
        {tensor: value.shape for tensor, value in load_file(tmp_path / folder / "model.safetensors").items()}
        for folder in ("out", "plain")
    ]
    # A tensor per expert, as in checkpoints of the dense model.
    assert shapes[0] == shapes[1] and (name == "granitemoe" or len(shapes[0]) > 3 * 6)
    table = str(evaluate(tmp_path / "out", tmp_path / "dense", dataset=None, speed=False))
    (sparsity,) = (line.split()[1] for line in table.splitlines() if line.startswith("sparsity  "))
    assert float(sparsity) == pytest.approx(100 * result.policy.sparsity, abs=0.01)
    record = tmp_path / "out" / "ffp_config.json"
    config = FFPConfig.from_file(record, dataset=str(data_folder))
    (again,), _ = make_plans([config], pruner.model, LoadOptions("cpu"))
    assert again.to_dict() == result.plan.to_dict()
    rows = json.loads(record.read_text())["policy"]["units"]
    assert {(row["unit"], row["group"], row["kept"]) for row in rows} == {("experts", "expert", 6)}
    for model_class in (AutoModelForCausalLM, FFPModelForCausalLM):
        loaded = model_class.from_pretrained(tmp_path / "out")
        assert loaded(windows).logits.equal(result.model(windows).logits)
    text = summarize(prune_records(Record.read(tmp_path / "out"), "out", "dense"), "next")
    assert f"6 of {result.policy.units[0].groups}" in text and "the mean number of tokens" in text
    for page in ("README.md", "report.html"):
        content = (tmp_path / "out" / page).read_text()
        assert "experts are removed" in content and "heads" not in content and "policy.png" not in content
    with pytest.raises(FFPError, match="already had experts pruned"):
        shape_of(str(tmp_path / "out"), LoadOptions(base_model=str(tmp_path / "dense")))
    with pytest.raises(FFPError, match="convert_hf_to_gguf"):
        check_exportable(result.model.config)


def test_stacked_experts_are_split_one_file_at_a_time(monkeypatch, tmp_path):
    pruned, *_ = prune_experts(make_tiny_model("deepseek-v3"))
    split, sizes = modeling_utils.revert_weight_conversion, []

    def record(model, state):
        sizes.append(sum(tensor.nbytes for tensor in state.values()))
        return split(model, state)

    monkeypatch.setattr(modeling_utils, "revert_weight_conversion", record)
    monkeypatch.setattr(saving, "FILE_SIZE", "30KB")
    saving.save_model(pruned, tmp_path)
    assert len(sizes) == len(list(tmp_path.glob("*.safetensors"))) > 3 and max(sizes) <= 30_000
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in pruned.state_dict().items())


def test_router_correction_bias_stays_float32(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.analysis.measurements.compute_dtype", lambda *_: torch.float32)
    pruner_of("deepseek-v3", data_folder, tmp_path / "dense")
    config = FFPConfig(dataset=str(data_folder), **OPTIONS | {"experts": 6, "calibration": "none"})
    pruner = FFPPruner.from_pretrained(tmp_path / "dense", config, device="cpu", dtype="bfloat16")
    routers = {
        name: torch.randn_like(bias)
        for name, bias in pruner.model.named_buffers()
        if name.endswith("e_score_correction_bias")
    }
    pruner.model.load_state_dict(routers, strict=False)
    pruned = pruner.prune().model.state_dict()
    for name, bias in routers.items():
        assert pruned[name].dtype == torch.float32 and set(pruned[name].tolist()) < set(bias.tolist())


@pytest.mark.parametrize("calibration", ["ridge", "layers", pytest.param("model", marks=pytest.mark.slow)])
def test_calibration_trains_remaining_experts_and_routers(data_folder, tmp_path, windows, calibration):
    options = {"sparsity": 0.5, "calibration": calibration, "distillation_rate": 0.0002}
    pruner = pruner_of("qwen2-moe", data_folder, tmp_path / "dense", **options)
    result = pruner.prune()
    first, last = result.calibration["stages"][0], result.calibration["stages"][-1]
    assert first["stage"] == "none" and last["stage"] == calibration
    if calibration != "ridge":
        errors = result.calibration["layers"]
        # One layer has a dense FFN, which is trained too.
        assert [row["layer"] for row in errors] == [0, 1, 2] and errors[0]["error"] < errors[0]["before"]
    pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded(windows).logits.equal(result.model(windows).logits)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deepseek-v3", {"expert_criterion": "loss", "calibration": "ridge"}),
        ("granitemoe", {"calibration": "layers"}),
        ("mixtral", {}),
    ],
)
def test_offloaded_experts_are_memory_mapped(data_folder, tmp_path, windows, name, options):
    options = {"experts": 6} | options
    pruner = pruner_of(name, data_folder, tmp_path / "dense", tmp_path / "work", offload="disk", **options)
    # None of the experts' tensors has memory of its own.
    maps = Path("/proc/self/maps").read_text()
    files = [str(path) for path in (tmp_path / "work" / "experts").rglob("*.safetensors")] or [f"{tmp_path}/dense"]
    assert all(file in maps for file in files)
    result = pruner.prune()
    # To write them, all layers would be in memory at once.
    assert not result.samples
    torch.testing.assert_close(
        result.model(windows).logits, pruner_of(name, data_folder, **options).prune().model(windows).logits
    )
    pruner.save_pretrained(tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")(windows).logits.equal(result.model(windows).logits)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "options", [{}, {"expert_criterion": "loss", "calibration": "ridge"}, {"calibration": "layers"}]
)
def test_estimated_tokens_of_mixture_bound_tokens_read(data_folder, options):
    pruner = pruner_of("qwen3-moe", data_folder, experts=6, **options)
    _, estimate = make_plans([pruner.measured.plan.asked], empty_model(pruner.model.config), LoadOptions())
    assert estimate.tokens / 4 < pruner.prune().tokens <= estimate.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "uniform"}, "leave out method"),
        ({"attention": "kv-groups"}, "leave out attention"),
        ({"speedup": 1.5}, "leave out speedup"),
        ({"experts": 1}, "the minimum is 2; raise experts"),
        ({"experts": 8}, "the model has 8 already; lower experts"),
        ({"sparsity": 0.9}, "the maximum is 0.75; lower sparsity"),
    ],
)
def test_options_inapplicable_to_mixtures_are_one_line_errors(data_folder, options, message):
    with pytest.raises(FFPError, match=message) as error:
        pruner_of("qwen3-moe", data_folder, **options)
    assert "\n" not in str(error.value)


def test_experts_budget_for_dense_model_is_rejected(data_folder):
    with pytest.raises(FFPError, match="'?llama'? has no experts"):
        pruner_of("llama", data_folder, experts=6)


def test_policy_below_minimum_number_of_experts_is_rejected():
    model = make_tiny_model("deepseek-v3")
    units = find_units(model, find_family(model.config))
    SortedModel(layerwise_of(model), units, [torch.arange(4)[:, None].expand(-1, 3)] * 2)
    with pytest.raises(FFPError, match="6 to 12"):
        PruningPolicy(tuple(unit.unit for unit in units), (3, 3))

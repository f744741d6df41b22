import copy
import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner, PruningPolicy
from optimum_ffp.commands.records import prune_records
from optimum_ffp.commands.summary import summarize
from optimum_ffp.evaluation import window_losses
from optimum_ffp.evaluation.size import kv_cache_bytes
from optimum_ffp.utils.record import Record
from tests.helpers import (
    DIVERSE_MODELS,
    SETTINGS,
    assert_same_weights,
    make_deep_model,
    make_pruner,
    make_text,
    make_tiny_model,
    make_tokenizer,
    save_with_tokenizer,
    step_parameters,
)


def pruner_of(model, data, **options) -> FFPPruner:
    return FFPPruner(model, make_tokenizer(), FFPConfig(dataset=str(data), **SETTINGS | options))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERSE_MODELS)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_families_are_pruned_to_sparsity(data_folder, name, preset):
    pruner = pruner_of(make_tiny_model(name), data_folder, preset=preset, sparsity=0.3, search_steps=5)
    result = pruner.prune()
    quantum = min(step_parameters(unit) for unit in pruner.measured.units)
    total = sum(unit.parameters for unit in pruner.measured.units)
    assert 0 <= result.policy.sparsity - 0.3 < quantum / total + 1e-12
    assert result.dense_parameters - result.parameters == total - result.policy.kept_parameters
    measured = window_losses(result.model, pruner.measured.data.test.tokens).mean().exp()
    assert float(measured) == pytest.approx(result.perplexity, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "method"), [("sublayers", "ffp"), ("layers", "homogeneous"), ("layers", "evolutionary")]
)
def test_depth_pruning_beats_width_pruning_of_redundant_layers(tmp_path, depth, method):
    dense = make_deep_model("llama")
    # A model that hardly needs its third layer, nor the attention of the last.
    for layer, part in ((2, "self_attn.o_proj"), (2, "mlp.down_proj"), (3, "self_attn.o_proj")):
        dense.model.layers[layer].get_submodule(part).weight.data *= 1e-3
    # On text of the model, which no other predicts better.
    options = {"sparsity": 0.3, "min_retention": 0.5, "calibration": "ridge", "search_samples": 8, "seq_len": 64}
    whole = pruner_of(copy.deepcopy(dense), "self", method="uniform", **options).prune()
    pruner = pruner_of(dense, "self", method=method, depth=depth, **options)
    result = pruner.prune()
    assert result.policy.kept_layers(4) == [0, 1, 3] and result.perplexity < whole.perplexity
    assert (result.policy.sizes[6] == 0) == (depth == "sublayers")
    assert 0 <= result.policy.sparsity - 0.3 < 0.05
    pruner.save_pretrained(tmp_path / "out")
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, LlamaForCausalLM) and (type(loaded) is LlamaForCausalLM) == (method == "homogeneous")
    measured = window_losses(loaded, pruner.measured.data.test.tokens).mean().exp()
    assert float(measured) == pytest.approx(result.perplexity, rel=1e-5)


@pytest.mark.slow
def test_single_kv_head_cache_shrinks_by_removing_attention(data_folder):
    dense = make_tiny_model("llama", num_hidden_layers=4, num_key_value_heads=1)
    budget = {"sparsity": None, "kv_cache": 0.6, "context": 24}
    with pytest.raises(FFPError, match="single KV head.*depth"):
        pruner_of(dense, data_folder, **budget)
    result = pruner_of(dense, data_folder, depth="sublayers", search_steps=5, calibration="ridge", **budget).prune()
    assert sum(size > 0 for size in result.policy.sizes[::2]) == 2 and result.policy.sizes[0] > 0
    assert kv_cache_bytes(result.model) == kv_cache_bytes(dense) / 2


@pytest.mark.slow
def test_perplexity_is_reported_for_each_dataset_of_mix(save_tiny_model, data_folder, tmp_path):
    (tmp_path / "other.txt").write_text(make_text(1500, 9))
    mix = f"{data_folder}:0.5,{tmp_path / 'other.txt'}:0.25,self:0.25"
    pruner = make_pruner(save_tiny_model(), mix, search_samples=4, reward="pruned", search_steps=5)
    result = pruner.prune()
    assert [windows.dataset for windows, _ in result.tests] == [str(data_folder), str(tmp_path / "other.txt")]
    for windows, perplexities in result.tests:
        expected = float(window_losses(result.model, windows.tokens).mean().exp())
        assert perplexities["calibrated"] == pytest.approx(expected, rel=1e-6)
        assert list(perplexities) == ["dense", "searched", "calibrated"]

    pruner.save_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "ffp_config.json").read_text())
    (other,) = record["provenance"]["other_texts"]
    assert other["dataset"] == "other.txt" and other["calibrated"] == result.tests[1][1]["calibrated"]
    card, report = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    summary = summarize(prune_records(Record.from_dict(record), "out", "dense"), "")
    for _, perplexities in result.tests:
        assert all(f"{perplexities['calibrated']:.3f}" in text for text in (report, repr(result)))
        assert f"**{perplexities['calibrated']:,.2f}**" in card
        assert f"pruned {perplexities['calibrated']:,.2f}" in summary
    assert str(tmp_path) not in card + report + json.dumps(record)
    assert len(ModelCard(card).data.eval_results) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("llama", {}), ("phi3", {"preset": "paper"}), ("gemma3", {})], ids=str)
def test_attention_with_single_kv_head_is_pruned_by_query_heads(data_folder, windows, tmp_path, name, options):
    # More than the FFNs alone could give.
    pruner = pruner_of(make_tiny_model(name, num_key_value_heads=1), data_folder, sparsity=0.7, **options)
    policy = pruner.prune().policy
    kept = [size for unit, size in zip(policy.units, policy.sizes) if unit.group == "query_head"]
    assert len(kept) == 3 and min(kept) < 8
    pruner.save_pretrained(tmp_path / "out")
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(windows).logits, pruner.result.model(windows).logits)
    assert PruningPolicy.from_rows(Record.read(tmp_path / "out").policy.units, pruner.measured.units) == policy


@pytest.mark.slow
def test_query_heads_option_keeps_kv_heads(save_tiny_model, data_folder):
    options = {"attention": "query-heads", "sparsity": 0.4, "min_retention": 0.5, "method": "no-search"}
    result = make_pruner(save_tiny_model(), data_folder, **options).prune()
    layers = result.model.model.layers
    assert {layer.self_attn.k_proj.out_features for layer in layers} == {16}
    assert {layer.self_attn.q_proj.out_features for layer in layers} <= {16, 32}
    assert result.policy.sparsity == pytest.approx(0.4, abs=0.01)


@pytest.mark.slow
def test_same_seed_gives_same_policy_and_weights(save_tiny_model, data_folder):
    folder = save_tiny_model()
    first = make_pruner(folder, data_folder).prune()
    # A model that the caller has loaded, in training mode.
    second = pruner_of(AutoModelForCausalLM.from_pretrained(folder).train(), data_folder).prune()
    assert first.policy == second.policy and first.perplexities == second.perplexities
    assert_same_weights(first.model, second.model)
    assert make_pruner(folder, data_folder, seed=1).prune().log != first.log


@pytest.mark.slow
def test_second_prune_reuses_measurements_and_equals_single_prune(save_tiny_model, data_folder, monkeypatch):
    folder = save_tiny_model()
    later = {"method": "random", "calibration": "ridge", "min_retention": 0.5, "update_samples": 1, "search_steps": 5}
    pruner = make_pruner(folder, data_folder)
    first = pruner.prune(sparsity=0.2)
    with monkeypatch.context() as patch:
        for name in ("collect_statistics", "collect_fisher"):
            patch.setattr(f"optimum_ffp.analysis.prepare.{name}", None)
        second = pruner.prune(sparsity=0.4, **later)
    alone = make_pruner(folder, data_folder, **later).prune(sparsity=0.4)
    assert (second.policy, second.log, second.perplexities) == (alone.policy, alone.log, alone.perplexities)
    assert second.plan.to_dict() == alone.plan.to_dict() and first.parameters > second.parameters


@pytest.mark.slow
def test_options_of_measurements_cannot_change_between_prunes(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, method="uniform", calibration="ridge")
    search = pruner.search()
    with pytest.raises(FFPError, match="fisher_samples"):
        pruner.finish(search, fisher_samples=1)
    for call in (pruner.prune, pruner.search):
        with pytest.raises(FFPError, match="dataset"):
            call(dataset="self")
    options = {"reward": "pruned", "agent": "ppo", "mapping": "greedy", "calibration": "none", "search_steps": 2}
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    with pytest.raises(FFPError, match="ridge"):
        pruner.prune(calibration="ridge")


@pytest.mark.slow
def test_measurements_read_only_options_of_their_stage(save_tiny_model, data_folder, monkeypatch):
    pruner = make_pruner(save_tiny_model(), data_folder)
    read = set()

    def watch(config, name):
        read.add(name)
        return object.__getattribute__(config, name)

    with monkeypatch.context() as patch:
        patch.setattr(FFPConfig, "__getattribute__", watch)
        assert pruner.measured.prepared.curves is not None
    # How many windows fit into memory at once changes nothing, and of these two only whether factors are needed.
    assert "num_samples" in read
    measured = {*pruner.measured.plan.for_stages("measured"), "batch_size", "reward", "calibration"}
    assert read & {*FFPConfig.option_names()} <= measured


def test_dtype_accepts_name_and_torch_dtype(save_tiny_model, data_folder):
    folder, config = save_tiny_model(), FFPConfig(dataset=str(data_folder))
    for dtype in ("bfloat16", torch.bfloat16):
        assert FFPPruner.from_pretrained(folder, config, dtype=dtype, device="cpu").model.dtype == torch.bfloat16
    with pytest.raises(FFPError, match="int8"):
        FFPPruner.from_pretrained(folder, config, dtype=torch.int8)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "calibration"), [(torch.bfloat16, "layers"), (torch.float16, "ridge")])
def test_half_precision_on_cpu_is_pruned_in_float32(tmp_path, data_folder, dtype, calibration):
    config = FFPConfig(dataset=str(data_folder), **SETTINGS | {"calibration": calibration, "sparsity": 0.3})
    save_with_tokenizer(make_tiny_model().to(dtype), tmp_path)
    pruners = [FFPPruner.from_pretrained(tmp_path, config, dtype=name, device="cpu") for name in ("auto", "float32")]
    result, reference = (pruner.prune() for pruner in pruners)
    assert result.policy == reference.policy
    assert result.perplexity == pytest.approx(reference.perplexity, rel=5e-3)
    assert {tensor.dtype for tensor in result.model.parameters()} == {dtype}
    # What is reported is what the saved weights give in float32.
    losses = window_losses(result.model.float(), pruners[0].measured.data.tests[0].tokens)
    assert result.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-6)


@pytest.mark.slow
def test_record_has_held_out_error_of_every_layer(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, held_out_samples=1, sparsity=0.4)
    result = pruner.prune()
    record = result.provenance().held_out
    assert (record["windows"], record["window_length"], record["split"]) == (1, 24, "validation")
    assert [row["layer"] for row in record["layers"]] == [0, 1, 2]
    assert all(0 < row["error"] <= row["before"] for row in [*record["layers"], record["last_norm"]])
    assert pruner.finish(result.search, calibration="ridge").calibration == {}


@pytest.mark.slow
def test_search_and_finish_accept_option_overrides(save_tiny_model, data_folder):
    folder, other = save_tiny_model(), {"method": "random", "min_retention": 0.5, "calibration": "none"}
    pruner = make_pruner(folder, data_folder, sparsity=0.3)
    search = pruner.search(**other)
    assert min(search.policy.retentions) >= 0.5 and pruner.measured.plan.method == "ffp"
    calibrated = pruner.finish(search, calibration="ridge")
    alone = make_pruner(folder, data_folder, sparsity=0.3, **other | {"calibration": "ridge"}).prune()
    assert alone.policy == calibrated.policy and alone.perplexities == calibrated.perplexities
    assert calibrated.plan.to_dict() == alone.plan.to_dict()
    assert list(pruner.finish(search).losses) == ["dense", "searched"]


def test_search_is_skipped_at_high_sparsity_by_default(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, method=None)
    low, high, again = (pruner.search(sparsity=sparsity) for sparsity in (0.2, 0.3, 0.2))
    assert [found.plan.method for found in (low, high, again)] == ["ffp", "no-search", "ffp"]
    assert low.policy == again.policy and low.log and not high.log
    assert low.note is None and "--method ffp" in high.note
    # A number of parameters removes as much.
    assert pruner.search(sparsity=None, params="23k").note == high.note
    # The agent of the lower one isn't needed, and nothing that is asked for is skipped.
    assert pruner.search(low.agent, sparsity=0.3).policy == high.policy
    assert pruner.search(low.agent, sparsity=0.3, method="ffp").note is None


def test_keep_work_keeps_work_folder_after_saving(save_tiny_model, data_folder, tmp_path):
    pruner = make_pruner(save_tiny_model(), data_folder, tmp_path / "work", method="uniform", calibration="ridge")
    for sparsity, keep in ((0.2, True), (0.3, False)):
        pruner.prune(sparsity=sparsity)
        with pytest.raises(FFPError, match="never replaced"):
            pruner.save_pretrained(data_folder)
        pruner.save_pretrained(tmp_path / f"{sparsity}", keep_work=keep)
        assert (tmp_path / "work").exists() == keep


@pytest.mark.slow
def test_window_length_is_limited_to_max_positions(save_tiny_model, data_folder):
    config = FFPConfig(dataset=str(data_folder), method="uniform", preset="paper", num_samples=4, search_samples=2)
    result = FFPPruner(make_tiny_model("gpt2"), make_tokenizer(), config).prune()
    assert result.plan.seq_len == result.test.length == 64 and config.seq_len is None
    with pytest.raises(FFPError, match="65"):
        make_pruner(save_tiny_model(), data_folder, seq_len=65)


def test_too_few_tokens_are_rejected_and_short_text_is_warning(data_folder, tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_text(make_text(180))
    config = FFPConfig(dataset=str(text), seq_len=16)
    with pytest.raises(FFPError, match="too few"):
        FFPPruner(make_tiny_model(intermediate_size=2048), make_tokenizer(), config).prune()
    assert len(FFPPruner(make_tiny_model(), make_tokenizer(), config).measured.data.calibration) == 6
    assert "fills only" in caplog.text


def test_data_roles_do_not_share_windows(save_tiny_model, data_folder):
    data = make_pruner(save_tiny_model(), data_folder / "train.txt").measured.data
    windows = [tuple(row) for _, part in data.roles() for row in part.tokens.tolist()]
    assert len(set(windows)) == len(windows)


def test_infeasible_sparsity_is_rejected_at_construction(save_tiny_model, data_folder):
    with pytest.raises(FFPError, match="0.9"):
        make_pruner(save_tiny_model(), data_folder, sparsity=0.9)
    with pytest.raises(FFPError, match="0.9"):
        pruner_of(make_tiny_model(), data_folder, sparsity=0.9)
    # GPT-2's class keeps all heads; with layers of different sizes it would do.
    folder = save_tiny_model("gpt2")
    make_pruner(folder, data_folder, sparsity=0.6)
    with pytest.raises(FFPError, match="same sizes"):
        make_pruner(folder, data_folder, method="homogeneous", sparsity=0.6)


def test_unprunable_models_are_rejected(save_tiny_model, data_folder):
    broken, quantized, foreign = (make_tiny_model() for _ in range(3))
    broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    quantized.config.quantization_config = {"quant_method": "gptq"}
    foreign.config.auto_map = {"AutoModelForCausalLM": "code.Model"}
    for model, word in (
        (make_pruner(save_tiny_model(), data_folder, method="uniform").prune().model, "already pruned"),
        (torch.compile(make_tiny_model()), "OptimizedModule"),
        (make_tiny_model().model, "LlamaModel"),
        ("a name", "str"),
        (broken, "infinite"),
        (quantized, "full precision"),
        (foreign, "code"),
    ):
        with pytest.raises(FFPError, match=word):
            pruner_of(model, data_folder).prune()


@pytest.mark.slow
def test_units_with_zero_inputs_are_pruned_first(data_folder):
    model = make_tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    # Without a search, which on a random model may well end at the uniform policy.
    for options in ({}, {"criterion": "obs", "ridge_lambda": 0.0}):
        result = pruner_of(copy.deepcopy(model), data_folder, method="no-search", **options).prune(sparsity=0.3)
        assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())
        # They are worth nothing, so they are what is removed first.
        dead = {(0, "ffn"), (1, "attention")}
        kept = {(unit.layer, unit.kind): rate for unit, rate in zip(result.policy.units, result.policy.retentions)}
        assert max(kept[unit] for unit in dead) <= min(kept[unit] for unit in kept.keys() - dead)


def test_overflow_error_names_layer(data_folder):
    for name, factor, word in (("model.layers.1.mlp.up_proj", 1e30, "layer 1 ffn"), ("lm_head", 1e8, "dense model")):
        model = make_tiny_model()
        model.get_submodule(name).weight.data.mul_(factor)
        with pytest.raises(FFPError, match=word):
            pruner_of(model, data_folder).prune()


def test_more_channels_than_calibration_tokens_is_warning(save_tiny_model, data_folder, caplog):
    # One window, of the eight that are asked for.
    words = (data_folder / "train.txt").read_text().split()
    (data_folder / "train.txt").write_text(" ".join(words[:45]))
    _ = make_pruner(save_tiny_model(), data_folder, method="uniform").measured.prepared
    assert "units have more channels (up to 48) than there are calibration tokens (24)" in caplog.text


@pytest.mark.parametrize(
    ("options", "word"), [({}, "size gradients"), ({"agent": "ppo"}, "shape"), ({"method": "random"}, "no agent")]
)
def test_invalid_warm_start_is_rejected_before_measuring(save_tiny_model, data_folder, options, word):
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    with pytest.raises(FFPError, match=word):
        pruner.search(warm_start={"weights": np.zeros(2)})
    assert "prepared" not in vars(pruner.measured)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["gradient", "ppo"])
def test_agent_of_model_with_other_sizes_is_rejected(agent, save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, agent=agent)
    learned = pruner.search().agent
    pruner.search(warm_start=learned)
    other = pruner_of(make_tiny_model(intermediate_size=64), data_folder, agent=agent)
    with pytest.raises(FFPError, match="sizes"):
        other.search(warm_start=learned)


def test_local_model_inherits_license_of_base_model(save_tiny_model, data_folder, monkeypatch):
    licenses = {"org/tiny": {"license": "mit"}}
    monkeypatch.setattr("optimum_ffp.pruner.read_license", lambda model, **hub: licenses.get(model, {}))
    pruner = make_pruner(save_tiny_model(), data_folder, base_model="org/tiny", method="uniform", calibration="none")
    assert pruner.prune().provenance().license == {"license": "mit"}

import copy
import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner, PruningPolicy
from optimum_ffp.commands.summary import prune_summary
from optimum_ffp.config.fields import MEASURED
from optimum_ffp.evaluation import window_losses
from optimum_ffp.search.task import UNIT_PARAMETERS
from tests.helpers import EVERY_MODEL, SETTINGS, make_pruner, make_text, make_tiny_model, make_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_MODEL)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_family_is_pruned_to_the_budget(data_folder, name, preset):
    config = FFPConfig(dataset=str(data_folder), preset=preset, sparsity=0.3, **SETTINGS)
    pruner = FFPPruner(make_tiny_model(name), make_tokenizer(), config)
    result = pruner.prune()
    quantum = min(unit.quantum for unit in pruner.measured.units)
    total = sum(unit.parameters for unit in pruner.measured.units)
    assert 0 <= result.policy.sparsity - 0.3 < quantum / total + 1e-12
    assert result.dense_parameters - result.parameters == total - result.policy.kept_parameters
    measured = window_losses(result.model, pruner.measured.data.test.tokens).mean().exp()
    assert float(measured) == pytest.approx(result.perplexity, rel=1e-6)


@pytest.mark.slow
def test_perplexity_is_reported_on_each_text_of_a_mix(save_tiny_model, data_folder, tmp_path):
    (tmp_path / "other.txt").write_text(make_text(1500, 9))
    mix = f"{data_folder}:0.5,{tmp_path / 'other.txt'}:0.25,self:0.25"
    options = {"search_samples": 4, "reward": "pruned", "search_steps": 5}
    pruner = make_pruner(save_tiny_model(), mix, tmp_path / "work", **options)
    result = pruner.prune()
    assert [windows.dataset for windows, _ in result.tests] == [str(data_folder), str(tmp_path / "other.txt")]
    for windows, perplexities in result.tests:
        expected = float(window_losses(result.model, windows.tokens).mean().exp())
        assert perplexities["calibrated"] == pytest.approx(expected, rel=1e-6)
        assert list(perplexities) == ["dense", "searched", "calibrated"]
    assert [*result.perplexities.items()] == [(windows.dataset, figures) for windows, figures in result.tests]

    pruner.save_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "ffp_config.json").read_text())
    assert record["dataset"] == "data:0.5,other.txt:0.25,self:0.25"
    (other,) = record["provenance"]["other_texts"]
    assert other["dataset"] == "other.txt" and other["calibrated"] == result.tests[1][1]["calibrated"]
    card, report = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    texts = prune_summary(result, "out"), card, report
    for name, (_, perplexities) in zip(("data", "other.txt"), result.tests):
        assert all(f"{perplexities['calibrated']:.3f}"[:-1] in text for text in texts)
        assert f"perplexity on {name}" in texts[0] and f"**perplexity on {name}**" in card
    assert "50 % data, 25 % other.txt, 25 % text sampled from the model itself" in card
    assert str(tmp_path) not in card + report + json.dumps(record)
    assert len(ModelCard(card).data.eval_results) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ("llama", "phi3", "gemma3")]
    + [("gemma3", options) for options in ({"preset": "paper"}, {"method": "random", "attention": "kv-groups"})],
    ids=str,
)
def test_attention_with_one_kv_head_loses_query_heads(data_folder, windows, tmp_path, name, options):
    # More than the FFNs alone could give.
    config = FFPConfig(dataset=str(data_folder), sparsity=0.7, **SETTINGS | options)
    pruner = FFPPruner(make_tiny_model(name, num_key_value_heads=1), make_tokenizer(), config)
    policy = pruner.prune().policy
    kept = [size for unit, size in zip(policy.units, policy.sizes) if unit.group == "query_head"]
    assert len(kept) == 3 and min(kept) < 8
    pruner.save_pretrained(tmp_path / "out")
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(windows).logits, pruner.result.model(windows).logits)
    record = json.loads((tmp_path / "out" / "ffp_config.json").read_text())
    assert PruningPolicy.from_dict(record["policy"], pruner.measured.units) == policy


@pytest.mark.slow
def test_query_heads_are_pruned_where_they_are_asked_for(save_tiny_model, data_folder, tmp_path):
    options = {"attention": "query-heads", "sparsity": 0.4, "min_retention": 0.5}
    pruner = make_pruner(save_tiny_model(), data_folder, tmp_path / "work", **options)
    result = pruner.prune()
    layers = result.model.model.layers
    assert {layer.self_attn.k_proj.out_features for layer in layers} == {16}
    assert {layer.self_attn.q_proj.out_features for layer in layers} <= {16, 32}
    assert result.policy.sparsity == pytest.approx(0.4, abs=0.01)
    with pytest.raises(FFPError, match="attention was 'query-heads' and is 'auto': measurements are made once"):
        pruner.search(config=pruner.config.replace(attention="auto"))


@pytest.mark.slow
def test_same_seed_same_policy_and_weights(save_tiny_model, data_folder):
    folder = save_tiny_model()
    first, second = (make_pruner(folder, data_folder).prune() for _ in range(2))
    assert first.policy == second.policy and first.perplexities == second.perplexities
    weights = second.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.model.state_dict().items())
    assert make_pruner(folder, data_folder, seed=1).prune().log != first.log


@pytest.mark.slow
def test_one_pruner_serves_several_sparsities(save_tiny_model, data_folder):
    folder = save_tiny_model()
    pruner = make_pruner(folder, data_folder, method="uniform")
    first, second = pruner.prune(0.2), pruner.prune(0.4)
    alone = make_pruner(folder, data_folder, method="uniform").prune(0.4)
    assert second.policy == alone.policy and second.perplexities == alone.perplexities
    assert first.parameters > second.parameters


@pytest.mark.slow
def test_the_documented_constructor(save_tiny_model, data_folder):
    folder = save_tiny_model()
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    config = FFPConfig(dataset=str(data_folder), **SETTINGS)
    result, other = FFPPruner(model, make_tokenizer(), config).prune(), make_pruner(folder, data_folder).prune()
    weights = other.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in result.model.state_dict().items())


@pytest.mark.slow
def test_what_is_read_later_may_change_between_prunes(save_tiny_model, data_folder):
    later = {"method": "random", "calibration": "ridge", "min_retention": 0.5, "update_samples": 1, "search_steps": 5}
    pruner = make_pruner(save_tiny_model(), data_folder)
    pruner.prune(0.3)
    for name, value in later.items():
        setattr(pruner.config, name, value)
    result, alone = pruner.prune(0.3), make_pruner(save_tiny_model(), data_folder, **later).prune(0.3)
    assert (result.policy, result.log, result.perplexities) == (alone.policy, alone.log, alone.perplexities)
    assert result.config.to_dict() == alone.config.to_dict()


@pytest.mark.slow
def test_what_was_measured_once_may_not_change(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, method="uniform", calibration="ridge")
    found = pruner.search()
    found.config.fisher_samples = 1
    with pytest.raises(
        FFPError, match="fisher_samples was 32 and is 1: measurements are made once; make a new FFPPruner"
    ):
        pruner.finish(found)
    pruner.config = FFPConfig(dataset="self", **SETTINGS | {"num_samples": 4})
    for call in (pruner.prune, pruner.search, lambda: next(pruner.sweep([0.2]))):
        with pytest.raises(FFPError, match="dataset was .* and is 'self'; num_samples was 8 and is 4"):
            call()

    options = {"reward": "pruned", "agent": "ppo", "mapping": "greedy", "calibration": "none", "search_steps": 2}
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    pruner.config.calibration = "ridge"
    with pytest.raises(FFPError, match="didn't need ridge regression and now do"):
        pruner.prune()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"criterion": "obs"}], ids=["default", "obs"])
def test_what_is_measured_once_reads_no_other_options(save_tiny_model, data_folder, monkeypatch, options):
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    read = set()

    def watch(config, name):
        read.add(name)
        return object.__getattribute__(config, name)

    with monkeypatch.context() as patch:
        patch.setattr(FFPConfig, "__getattribute__", watch)
        assert pruner.measured.prepared.curves is not None
    # How many windows fit into memory at once changes nothing, and of these two only whether factors are needed.
    assert "num_samples" in read
    assert read & {*FFPConfig.option_names()} <= {*MEASURED, "batch_size", "reward", "calibration"}


def test_a_type_is_named_or_given(save_tiny_model, data_folder):
    folder, config = save_tiny_model(), FFPConfig(dataset=str(data_folder))
    for dtype in ("bfloat16", torch.bfloat16):
        assert FFPPruner.from_pretrained(folder, config, dtype=dtype, device="cpu").model.dtype == torch.bfloat16
    with pytest.raises(FFPError, match="dtype torch.int8 is not known; choose from auto, float32"):
        FFPPruner.from_pretrained(folder, config, dtype=torch.int8)


@pytest.mark.parametrize("calibration", ["ridge", "distillation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_the_cpu_does_not_multiply_are_pruned_in_float32(tmp_path, data_folder, dtype, calibration):
    config = FFPConfig(dataset=str(data_folder), **SETTINGS | {"calibration": calibration, "sparsity": 0.3})
    make_tiny_model().to(dtype).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    pruners = [FFPPruner.from_pretrained(tmp_path, config, dtype=name, device="cpu") for name in ("auto", "float32")]
    result, reference = (pruner.prune() for pruner in pruners)
    assert result.policy == reference.policy
    assert result.perplexity == pytest.approx(reference.perplexity, rel=1e-3)
    assert {tensor.dtype for tensor in result.model.parameters()} == {dtype}
    # What is reported is what the saved weights give in float32.
    losses = window_losses(result.model.float(), pruners[0].measured.data.tests[0].tokens)
    assert result.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-6)


@pytest.mark.slow
def test_held_out_error_of_every_layer_is_on_record(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, held_out_samples=1, sparsity=0.4)
    distilled = pruner.prune()
    record = distilled.to_dict()["provenance"]["held_out"]
    assert (record["windows"], record["window_length"], record["split"]) == (1, 24, "validation")
    assert [row["layer"] for row in distilled.calibration["layers"]] == [0, 1, 2]
    assert all(0 < row["error"] <= row["before"] for row in distilled.calibration["layers"])
    assert 0 < distilled.calibration["last_norm"]["error"] <= distilled.calibration["last_norm"]["before"]
    shorter = pruner.finish(distilled.found, distilled.config.replace(distillation_seq_len=9))
    assert (shorter.calibration["windows"], shorter.calibration["window_length"]) == (2, 12)
    assert shorter.calibration["layers"] != distilled.calibration["layers"]
    assert make_pruner(save_tiny_model(), data_folder, calibration="ridge").prune().calibration == {}


@pytest.mark.slow
def test_windows_on_record_are_those_that_there_were(save_tiny_model, data_folder, tmp_path):
    pruner = make_pruner(save_tiny_model(), data_folder, num_samples=10_000)
    record = pruner.prune().search.calibrated_on
    assert (record["windows"], record["split"]) == (len(pruner.measured.data.calibration), "train")
    pruner.save_pretrained(tmp_path / "out")
    assert f"{record['windows']} windows of 24 tokens" in (tmp_path / "out" / "README.md").read_text()


def test_sweep_finds_what_cannot_be_met_before_it_starts(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder)
    with pytest.raises(FFPError, match="sparsity 0.9 can't be met"):
        next(pruner.sweep([0.2, 0.9]))
    assert not pruner.measured.meter.seconds


def test_roles_do_not_share_windows(save_tiny_model, data_folder):
    data = make_pruner(save_tiny_model(), data_folder / "train.txt").measured.data
    parts = [set(map(tuple, part.tokens.tolist())) for part in (data.calibration, data.search, data.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.slow
def test_bounds_and_multiples_are_kept(save_tiny_model, data_folder):
    options = {"min_retention": 0.5, "max_retention": 0.75, "ffn_multiple": 4, "sparsity": 0.4}
    result = make_pruner(save_tiny_model(), data_folder, **options).prune()
    for unit, size in zip(result.policy.units, result.policy.sizes):
        assert 0.5 <= size / unit.groups <= 0.75 and (unit.kind == "attention" or size % 4 == 0)


@pytest.mark.slow
def test_a_search_and_a_calibration_with_other_options_than_the_pruners(save_tiny_model, data_folder):
    folder, other = save_tiny_model(), {"method": "random", "min_retention": 0.5, "calibration": "none"}
    pruner = make_pruner(folder, data_folder, sparsity=0.3)
    config = pruner.config.replace(**other)
    found = pruner.search(config=config)
    assert min(found.policy.retentions) >= 0.5 and pruner.config.method == "ffp"
    calibrated = pruner.finish(found, found.config.replace(calibration="ridge"))
    assert (calibrated.config.method, calibrated.config.calibration) == ("random", "ridge")
    alone = make_pruner(folder, data_folder, sparsity=0.3, **other | {"calibration": "ridge"}).prune()
    assert alone.policy == calibrated.policy and alone.perplexities == calibrated.perplexities
    with pytest.raises(FFPError, match="criterion was 'fisher-obs' and is 'wanda': measurements are made once"):
        pruner.search(config=config.replace(criterion="wanda"))


@pytest.mark.slow
def test_a_sweep_does_not_replace_what_it_has_written(save_tiny_model, data_folder, tmp_path):
    """A claim on a folder is for the process that resumes."""
    pruner = make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work", method="uniform")
    results = pruner.sweep([0.1, 0.3])
    next(results)
    pruner.save_pretrained(tmp_path / "out")
    next(results)
    with pytest.raises(FFPError, match="out exists; name another folder"):
        pruner.save_pretrained(tmp_path / "out")
    again = make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work", method="uniform")
    next(again.sweep([0.1, 0.3], resume=True))
    again.save_pretrained(tmp_path / "out")


def test_a_sweep_that_is_broken_off_leaves_the_pruner_as_it_was(save_tiny_model, data_folder, tmp_path):
    pruner = make_pruner(save_tiny_model(), data_folder, tmp_path / "work")
    for _ in pruner.sweep([0.2, 0.3]):
        break
    pruner.save_pretrained(tmp_path / "first")
    assert (tmp_path / "work").is_dir()
    assert pruner.prune(0.3).search.sweep is None
    pruner.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "work").exists()


def test_calibration_can_be_left_out(save_tiny_model, data_folder):
    result = make_pruner(save_tiny_model(), data_folder, calibration="none", reward="pruned").prune()
    assert list(result.losses) == ["dense", "searched"]


def test_windows_longer_than_the_model_knows(save_tiny_model, data_folder):
    with pytest.raises(FFPError, match="seq_len 65 is more than the 64 positions"):
        make_pruner(save_tiny_model(), data_folder, seq_len=65)


@pytest.mark.slow
def test_windows_are_as_long_as_the_model_knows(data_folder):
    config = FFPConfig(dataset=str(data_folder), method="uniform", preset="paper", num_samples=4, search_samples=2)
    result = FFPPruner(make_tiny_model("gpt2"), make_tokenizer(), config).prune()
    assert result.config.seq_len == result.test.length == 64 and config.seq_len is None


def test_too_little_text_is_refused_and_little_text_is_said(data_folder, tmp_path, caplog):
    model, text = make_tiny_model(intermediate_size=1024), tmp_path / "text.txt"
    text.write_text(make_text(80))
    config = FFPConfig(dataset=str(text), seq_len=16)
    with pytest.raises(FFPError, match="48 calibration tokens are too few for units of 1,024 channels: at least 64"):
        FFPPruner(model, make_tokenizer(), config).prune()
    assert len(FFPPruner(make_tiny_model(), make_tokenizer(), config).measured.data.calibration) == 3
    assert "gives 3 of the 128 calibration windows of 16 tokens" in caplog.text


def test_infeasible_sparsity_is_refused_at_once(save_tiny_model, data_folder):
    with pytest.raises(FFPError, match="sparsity 0.9 can't be met"):
        make_pruner(save_tiny_model(), data_folder, sparsity=0.9)
    # GPT-2's class keeps all heads; with layers of different sizes it would do.
    options, folder = {"sparsity": 0.6}, save_tiny_model("gpt2")
    make_pruner(folder, data_folder, **options)
    with pytest.raises(FFPError, match="sparsity 0.6 can't be met by layers that are all alike"):
        make_pruner(folder, data_folder, method="homogeneous", **options)


def test_what_can_not_be_pruned_is_refused_whoever_has_loaded_it(save_tiny_model, data_folder, tmp_path):
    def refused(model, reason):
        with pytest.raises(FFPError, match=reason):
            FFPPruner(model, make_tokenizer(), FFPConfig())

    pruned = make_pruner(save_tiny_model(), data_folder, method="uniform").prune().model
    refused(pruned, "^the model is already pruned; prune the dense model")
    refused(torch.compile(make_tiny_model()), "is of type OptimizedModule; give a model as AutoModelForCausalLM")
    refused(make_tiny_model().model, "is of type LlamaModel; give a model as AutoModelForCausalLM")
    refused("a name", "is of type str; give a model as AutoModelForCausalLM")
    broken = make_tiny_model()
    broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    refused(broken, r"model.layers.1.mlp.up_proj.weight of .* has infinite or NaN values")
    broken = make_tiny_model()
    broken.config.quantization_config = {"quant_method": "gptq"}
    refused(broken, "is quantised; prune the model in full precision")
    broken.config.quantization_config, broken.config.auto_map = None, {"AutoModelForCausalLM": "code.Model"}
    refused(broken, "brings modelling code of its own")


def test_offloaded_weights_are_refused(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    room = {"cpu": "60KB", "disk": "1GB"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory=room, offload_folder=tmp_path / "offload"
    )
    with pytest.raises(FFPError, match=r"of 31,456 parameters are offloaded, .* use more devices"):
        FFPPruner(model, make_tokenizer(), FFPConfig())


@pytest.mark.slow
def test_units_that_read_zeros_are_pruned_like_any_other(data_folder):
    model = make_tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    # Without a search, which on a random model may well end at the uniform policy.
    for options in ({}, {"criterion": "obs", "ridge_lambda": 0.0}):
        config = FFPConfig(dataset=str(data_folder), method="no-search", **SETTINGS | options)
        result = FFPPruner(copy.deepcopy(model), make_tokenizer(), config).prune(0.3)
        assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())
        # They are worth nothing, so they are what is removed first.
        dead = {(0, "ffn"), (1, "attention")}
        kept = {(unit.layer, unit.kind): rate for unit, rate in zip(result.policy.units, result.policy.retentions)}
        assert max(kept[unit] for unit in dead) <= min(kept[unit] for unit in kept.keys() - dead)


def test_activations_that_overflow_end_in_one_line_that_names_the_layer(data_folder):
    model = make_tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1e30)
    pruner = FFPPruner(model, make_tokenizer(), FFPConfig(dataset=str(data_folder), **SETTINGS))
    with pytest.raises(FFPError, match="the input of the output projection of layer 1 ffn is not finite: .*--dtype"):
        pruner.prune()


@pytest.mark.slow
def test_more_channels_than_calibration_tokens_are_a_warning(save_tiny_model, data_folder, caplog):
    folder, words = save_tiny_model(), (data_folder / "train.txt").read_text().split()
    make_pruner(folder, data_folder, method="uniform").prune()
    assert not caplog.records
    # One window, of the eight that are asked for.
    (data_folder / "train.txt").write_text(" ".join(words[:45]))
    make_pruner(folder, data_folder, method="uniform").prune()
    assert "6 of 6 units have more channels (up to 48) than there are calibration tokens (24)" in caplog.text


@pytest.mark.slow
def test_a_dense_model_whose_perplexity_overflows(data_folder):
    model = make_tiny_model()
    model.lm_head.weight.data.mul_(1e8)
    pruner = FFPPruner(model, make_tokenizer(), FFPConfig(dataset=str(data_folder), **SETTINGS))
    with pytest.raises(FFPError, match="perplexity of the dense model is not finite on the search windows"):
        pruner.prune()


def test_an_agent_needs_a_method_that_has_one(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, method="random")
    with pytest.raises(FFPError, match="method 'random' has no agent; leave out warm_start, or choose method 'ffp'"):
        pruner.search(warm_start={"weights": np.zeros(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no size gradients of 6 units"),
        ({"agent": "ppo"}, r"has mlp_extractor.policy_net.0.weight of shape None, this search needs \(256, 1\)"),
    ],
)
def test_an_agent_that_can_not_be_started_from_is_refused_before_anything_is_measured(
    save_tiny_model, data_folder, options, message
):
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    with pytest.raises(FFPError, match=message):
        pruner.search(warm_start={"weights": np.zeros(2)})
    assert "prepared" not in vars(pruner.measured)


@pytest.mark.parametrize("agent", ["gradient", "ppo"])
def test_an_agent_of_a_model_of_other_sizes_is_refused(agent, save_tiny_model, data_folder, tmp_path):
    found = make_pruner(save_tiny_model(), data_folder, agent=agent).search().agent
    make_pruner(save_tiny_model(), data_folder, agent=agent).search(warm_start=found)
    other = make_tiny_model(intermediate_size=64)
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    pruner = make_pruner(tmp_path / "other", data_folder, agent=agent)
    with pytest.raises(FFPError, match="is of a model whose attention and FFNs have other sizes; warm-start from"):
        pruner.search(warm_start=found)
    assert "prepared" not in vars(pruner.measured)
    # Earlier versions saved no sizes.
    pruner.search(warm_start={name: array for name, array in found.items() if name != UNIT_PARAMETERS})

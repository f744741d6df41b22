"""The configs: what presets set, what follows other options, what is refused, and what saved files mean."""

import inspect
import json
import logging
from dataclasses import replace

import pytest

from optimum_ffp import EvaluationConfig, FFPConfig, FFPError, RecoveryConfig
from optimum_ffp.config.budgets import parse_workload
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.recovery.plan import make_recovery_plan
from tests.helpers import plan_of, run_python


def save(record, folder):
    path = folder / "ffp_config.json"
    path.write_text(json.dumps(record))
    return path


def test_config_signatures_list_and_document_every_option():
    for kind in (FFPConfig, RecoveryConfig, EvaluationConfig):
        assert {*kind.option_names()} <= {*inspect.signature(kind).parameters}
        assert all(f"    {field.name}: " in kind.__doc__ for field in kind.option_fields())
    assert inspect.signature(FFPConfig).parameters["num_samples"].default == 128


@pytest.mark.parametrize("kind", [FFPConfig, RecoveryConfig])
def test_every_preset_used_by_options_is_choice(kind):
    presets = {name for option in kind.all_fields() for name in option.metadata["presets"]}
    assert presets and presets <= {*kind.__dataclass_fields__["preset"].metadata["choices"]}


def test_paper_preset_matches_paper():
    config = FFPConfig(preset="paper")
    assert config.dataset == "wikitext2" and config.agent == "ppo"
    assert (config.criterion, config.mapping, config.reward) == ("wanda", "greedy", "pruned")
    assert config.calibration == "ridge"
    ppo = config.options_for("agent", "ppo")
    assert (ppo.learning_rate, ppo.clip_range, ppo.hidden_sizes) == (1e-4, 0.2, (256, 128))
    assert (config.search_steps, config.ridge_lambda, config.rate_precision) == (1000, 0.01, 0.01)
    assert (config.num_samples, config.seq_len) == (32, None)
    given = FFPConfig(preset="paper", search_steps=64, mapping="water-filling")
    assert (given.search_steps, given.mapping, given.criterion) == (64, "water-filling", "wanda")


@pytest.mark.parametrize(
    ("options", "derived"),
    [
        ({}, ("gradient", "auto", 26)),
        ({"reward": "pruned"}, ("ppo", "auto", 256)),
        ({"agent": "ppo"}, ("ppo", "auto", 256)),
        ({"agent": "ppo", "search_steps": 9}, ("ppo", "auto", 9)),
        ({"method": "homogeneous"}, ("gradient", "kv-groups", 26)),
        ({"preset": "paper"}, ("ppo", "kv-groups", 1000)),
    ],
)
def test_plan_resolves_defaults_derived_from_other_options(options, derived):
    config = FFPConfig(**options)
    plan = plan_of(**options)
    assert (plan.agent, plan.attention, plan.search_steps) == derived
    assert plan.asked == config
    assert config.agent == (options.get("agent") or config.preset_values(config.preset).get("agent"))


@pytest.mark.parametrize(("preset", "tokens"), [("quick", 2_000_000), ("standard", 100_000_000)])
def test_recovery_presets_set_token_budgets(preset, tokens):
    def plan(**options):
        return make_recovery_plan(RecoveryConfig(dataset="c4", preset=preset, **options), "pruned", LoadOptions())

    assert plan().max_tokens == tokens
    few = plan(max_tokens="5k", lora=8)
    assert (few.max_tokens, few.batch_tokens, few.learning_rate) == (5000, 25, 5e-4)
    assert plan(max_tokens=50).batch_tokens == 1
    for text, number in {"400k": 400_000, "1.5B": 1_500_000_000, "2,000": 2000}.items():
        assert RecoveryConfig(max_tokens=text).max_tokens == number


INVALID = [
    (FFPConfig, {"sparsity": 0.0}, "sparsity"),
    (FFPConfig, {"sparsity": float("nan")}, "sparsity"),
    (FFPConfig, {"sparsity": True}, "sparsity"),
    (FFPConfig, {"sparsity": 20}, "0.2"),
    (FFPConfig, {"sparsty": 0.2}, "did you mean sparsity"),
    (FFPConfig, {"min_retention": 0.9, "max_retention": 0.5}, "min_retention"),
    (FFPConfig, {"min_retention": -0.1}, "min_retention"),
    (FFPConfig, {"ridge_lambda": float("inf")}, "ridge_lambda"),
    (FFPConfig, {"num_samples": 0}, "num_samples"),
    (FFPConfig, {"params": "6,5B"}, "6B"),
    (FFPConfig, {"num_samples": 2.5}, "num_samples"),
    (FFPConfig, {"seq_len": 1}, "seq_len"),
    (FFPConfig, {"text_column": ""}, "text_column"),
    (FFPConfig, {"seed": -1}, "seed"),
    (FFPConfig, {"hidden_sizes": [64, 0]}, "hidden_sizes"),
    (FFPConfig, {"hidden_sizes": 64}, "hidden_sizes"),
    (FFPConfig, {"method": "magic"}, "no-search"),
    (FFPConfig, {"method": "homogeneous", "attention": "auto"}, "query-heads"),
    (FFPConfig, {"method": "homogeneous", "depth": "sublayers"}, "layers"),
    (FFPConfig, {"policy": "pruned", "depth": "layers"}, "policy"),
    (FFPConfig, {"agent": "gradient", "reward": "pruned"}, "reward"),
    (FFPConfig, {"agent": "gradient", "mapping": "greedy"}, "mapping"),
    (FFPConfig, {"criterion": "no_such_package.criterion"}, "no_such_package"),
    (FFPConfig, {"criterion": 1.5}, "fisher-obs"),
    (FFPConfig, {"preset": "other"}, "paper"),
    (FFPConfig, {"dataset": None}, "dataset"),
    (FFPConfig, {"base_model": "models/tiny.Q8 0.gguf"}, "Hub id"),
    (FFPConfig, {"eval_dataset": "c4:0.7,self:0.7"}, "share"),
    (FFPConfig, {"dataset": "wikitext2,c4,self", "search_samples": 2}, "search_samples"),
    (FFPConfig, {"rate_precision": 2.0}, "rate_precision"),
    (FFPConfig, {"relative_outputs": 1}, "true"),
    (RecoveryConfig, {"preset": "paper"}, "quick"),
    (RecoveryConfig, {"max_tokens": "2 million"}, "2M"),
    (RecoveryConfig, {"temperature": 0}, "temperature"),
    (RecoveryConfig, {"label_share": 1.5}, "label_share"),
    (RecoveryConfig, {"lora": -1}, "lora"),
    (RecoveryConfig, {"patience": 0}, "patience"),
    (RecoveryConfig, {"eval_dataset": "self"}, "generated"),
    (EvaluationConfig, {"tasks": "boolq"}, "list"),
    (EvaluationConfig, {"tasks": ["boolq", ""]}, "tasks"),
    (EvaluationConfig, {"new_tokens": 0}, "new_tokens"),
    (EvaluationConfig, {"tokens": 8}, "did you mean new_tokens"),
]


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "ffp"),
        ({"sparsity": 0.24}, "ffp"),
        ({"sparsity": 0.25}, "no-search"),
        ({"kv_cache": 0.5}, "ffp"),
        ({"sparsity": 0.3, "calibration": "ridge"}, "ffp"),
        ({"sparsity": 0.3, "calibration": "none"}, "ffp"),
        ({"sparsity": 0.3, "agent": "gradient"}, "ffp"),
        ({"sparsity": 0.3, "preset": "paper", "calibration": "layers"}, "ffp"),
        ({"sparsity": 0.3, "method": "random"}, "random"),
    ],
)
def test_default_method_depends_on_budget_and_calibration(options, method):
    assert plan_of(**options).method == method
    assert FFPConfig(policy="pruned").method == "given"


@pytest.mark.parametrize(("kind", "options", "word"), INVALID)
def test_invalid_options_are_rejected(kind, options, word):
    with pytest.raises(FFPError, match=word):
        kind(**options)


def test_paths_and_custom_modules_are_accepted_as_values(tmp_path):
    for kind in (FFPConfig, RecoveryConfig):
        assert kind(dataset=tmp_path / "text.jsonl").dataset == str(tmp_path / "text.jsonl")
    module = "optimum_ffp.analysis.criteria.wanda"
    assert FFPConfig(criterion=module).criterion == module
    with pytest.raises(FFPError, match="install.*--criterion json.tool"):
        FFPConfig.from_file(save({"criterion": "json.tool"}, tmp_path))


def test_saved_configs_round_trip(tmp_path):
    config = FFPConfig(preset="paper", sparsity=0.3, hidden_sizes=[64], eval_dataset="c4", multiple_of=32)
    path = save(config.to_dict() | {"policy": {}, "files": []}, tmp_path)
    assert FFPConfig.from_file(path) == config
    assert FFPConfig.from_file(path, seed=5) == replace(config, seed=5)
    # A preset beside a file replaces what presets set, and nothing else.
    again = FFPConfig.from_file(path, preset="default", num_samples=5)
    assert again == FFPConfig(sparsity=0.3, eval_dataset="c4", num_samples=5)
    recovery = RecoveryConfig(lora=8, max_tokens="3M", batch_tokens=9, seed=4)
    path = save({"policy": {}, "recovery": [{"options": {}}, {"options": recovery.to_dict()}]}, tmp_path)
    assert RecoveryConfig.from_file(path) == recovery
    assert RecoveryConfig.from_file(path, preset="standard").batch_tokens is None


def test_override_of_saved_config_resets_dependent_options(tmp_path):
    folder = save(FFPConfig(method="given", policy="other").to_dict() | {"policy": {}}, tmp_path)
    assert FFPConfig.from_file(folder).policy == str(folder)
    for override in ({"sparsity": 0.4}, {"method": "ffp"}):
        assert FFPConfig.from_file(folder, **override) == FFPConfig(**override)
    path = save(plan_of(params="24k").to_dict(), tmp_path)
    assert FFPConfig.from_file(path, policy="b").limits == FFPConfig(policy="b").limits
    assert FFPConfig.from_file(path, agent="ppo").search_steps is None
    layers = FFPConfig.from_file(path, calibration="layers")
    assert layers.choice_options.keys().isdisjoint({"lora", "distillation_passes"})
    path = save(FFPConfig(depth="layers").to_dict() | {"costs": {"workload": "8+4", "units": []}}, tmp_path)
    assert FFPConfig.from_file(path, policy="b").depth == "none"
    assert FFPConfig.from_file(path, workload="4+8").costs is None
    recovery = RecoveryConfig(learning_rate=8e-6, max_tokens=4000, batch_tokens=20)
    path = save({"policy": {}, "recovery": [{"options": recovery.to_dict()}]}, tmp_path)
    overrides = {"lora": 8, "max_tokens": "2M"}
    assert RecoveryConfig.from_file(path, **overrides) == RecoveryConfig(**overrides)


def test_fast_preset_trains_layers_if_whole_model_does_not_fit():
    for calibration, passes in (("model", 0), ("layers", 2)):
        assert plan_of(preset="fast", calibration=calibration).options["calibration"].distillation_passes == passes


def test_record_sections_that_are_not_options_are_ignored(tmp_path, caplog):
    config = FFPConfig.from_file(save(FFPConfig(dataset="c4").to_dict() | {"search": {}, "files": []}, tmp_path))
    assert config == FFPConfig(dataset="c4") and not caplog.text
    with pytest.raises(FFPError, match="must be one of"):
        FFPConfig.from_file(save({"agent": "bandit"}, tmp_path))
    with pytest.raises(FFPError, match="without a recovery"):
        RecoveryConfig.from_file(save({"policy": {}}, tmp_path))


def test_unknown_option_in_config_file_is_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert FFPConfig.from_file(save({"sparsty": 0.4, "seed": 3}, tmp_path)) == FFPConfig(seed=3)
    assert "did you mean sparsity" in caplog.text


def test_lora_without_peft_is_rejected(monkeypatch):
    monkeypatch.setattr("optimum_ffp.config.training.find_spec", lambda name: None)
    for kind in (FFPConfig, RecoveryConfig):
        assert kind(lora=0)
        with pytest.raises(FFPError, match="pip install peft"):
            kind(lora=8)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"sparsity": "much"}', "\x00"])
def test_malformed_config_files_are_rejected(tmp_path, content):
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(FFPError):
        FFPConfig.from_file(path)


def test_options_of_unused_choices_are_listed_as_ignored():
    assert "search_steps" not in FFPConfig().ignored and "learning_rate" in FFPConfig().ignored
    assert "learning_rate" not in FFPConfig(agent="ppo").ignored
    assert "learning_rate" not in FFPConfig(reward="pruned", mapping="greedy").ignored
    # The agent itself is not read by this method.
    assert "learning_rate" in FFPConfig(agent="ppo", method="random").ignored
    assert "model_passes" in FFPConfig(calibration="layers").ignored
    assert {"train_seq_len", "model_passes", "lora"}.isdisjoint(FFPConfig().ignored)


def test_importing_config_does_not_import_torch():
    program = "import sys, optimum_ffp.config; assert not {'torch', 'transformers', 'datasets'} & {*sys.modules}"
    run_python("-c", program)


def test_quantities_are_parsed_and_name_output_folders():
    for option, text, number in (
        ("params", "6B", 6 * 10**9),
        ("params", "134.515M", 134_515_000),
        ("memory", "1400MiB", 1400 * 2**20),
        ("memory", "1.5GiB", 1536 * 2**20),
    ):
        config = FFPConfig(**{option: text})
        assert getattr(config, option) == number and config.budget_name == text
        assert getattr(FFPConfig(**{option: number}), option) == number
    assert FFPConfig(params="80 %", memory="7.5%").budget_name == "params-80-memory-7.5"
    assert FFPConfig(context="32k").context == 32768 and FFPConfig(memory="2GB").memory == 2 * 10**9
    assert FFPConfig(sparsity=0.3, kv_cache=0.5).budget_name == "30-kv-50" and FFPConfig().budget_name == "20"
    assert FFPConfig(speedup=1.25).budget_name == "1.25x"
    assert parse_workload("1024 + 200x8") == (1024, 200, 8) and parse_workload("1024+0") == (1024, 0, 1)
    for workload in ("1024", "0+5", "8+4x0", "8x4", "8+-1"):
        with pytest.raises(FFPError, match="invalid workload"):
            FFPConfig(workload=workload)
    for options in (
        {"params": "6 lots"},
        {"params": "100%"},
        {"context": "80%"},
        {"memory": "12GiBs"},
        {"kv_cache": 1.0},
        {"context": 0},
    ):
        with pytest.raises(FFPError, match=next(iter(options))):
            FFPConfig(**options)

import json

import pytest

from optimum_ffp import FFPConfig, FFPError, RecoveryConfig
from optimum_ffp.config.texts import TextMix


def save(config, folder):
    path = folder / "ffp_config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def test_paper_preset_is_the_papers_numbers():
    config = FFPConfig(preset="paper")
    assert config.dataset == "wikitext2" and FFPConfig().texts == TextMix.parse("wikitext2,c4")
    assert (config.criterion, config.mapping, config.reward, config.calibration) == (
        "wanda",
        "greedy",
        "pruned",
        "ridge",
    )
    assert (config.learning_rate, config.clip_range, config.hidden_sizes) == (1e-4, 0.2, (256, 128))
    assert (config.search_steps, config.ridge_lambda, config.rate_precision) == (1000, 0.01, 0.01)
    assert (config.num_samples, config.seq_len) == (32, None)


def test_what_is_given_wins_over_the_preset():
    config = FFPConfig(preset="paper", search_steps=64, mapping="water-filling")
    assert (config.search_steps, config.mapping, config.criterion) == (64, "water-filling", "wanda")


def test_round_trip(tmp_path):
    config = FFPConfig(preset="paper", sparsity=0.3, hidden_sizes=[64], eval_dataset="c4", ffn_multiple=32)
    path = save(config, tmp_path)
    assert FFPConfig.from_file(path).to_dict() == config.to_dict()
    assert set(FFPConfig.option_names()) <= set(json.loads(path.read_text()))


def test_the_default_agent_is_the_best_that_can_run():
    assert FFPConfig().agent == "gradient" and FFPConfig(preset="paper").agent == "ppo"
    assert FFPConfig(reward="pruned").agent == "ppo"
    with pytest.raises(FFPError, match="reward"):
        FFPConfig(agent="gradient", reward="pruned")
    with pytest.raises(FFPError, match="mapping"):
        FFPConfig(agent="gradient", mapping="greedy")


@pytest.mark.parametrize("removed", [{"grad": False}, {"agent": "bandit"}, {"calibration": "sequential"}])
def test_what_was_removed_is_refused_where_it_is_selected(removed, tmp_path):
    path = tmp_path / "ffp_config.json"
    path.write_text(json.dumps({"seed": 3} | removed))
    for select in (lambda: FFPConfig(**removed), lambda: FFPConfig.from_file(path)):
        with pytest.raises(FFPError, match="removed"):
            select()


def test_other_options_of_earlier_versions_are_dropped():
    earlier = {"grad": True, "slope_samples": 2, "dense_target": 0.3, "sequential_lambda": None}
    assert FFPConfig(seed=3, **earlier).to_dict() == FFPConfig(seed=3).to_dict()


def test_ppo_has_steps_to_learn_in_whatever_else_is_set():
    for options in ({}, {"reward": "pruned"}):
        assert FFPConfig(agent="ppo", **options).search_steps == 256
    assert FFPConfig(agent="ppo", search_steps=9).search_steps == 9
    assert FFPConfig(agent="ppo", preset="paper").search_steps == 1000


def test_file_with_overrides(tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"sparsity": 0.4, "seed": 3}')
    config = FFPConfig.from_file(path, seed=5)
    assert (config.sparsity, config.seed) == (0.4, 5)


def test_a_preset_that_is_given_beside_a_file_replaces_what_presets_set(tmp_path):
    path = save(FFPConfig(sparsity=0.4, seed=3, search_steps=7, min_retention=0.1), tmp_path)
    config = FFPConfig.from_file(path, preset="paper", num_samples=5)
    kept = {"sparsity": 0.4, "seed": 3, "min_retention": 0.1, "num_samples": 5}
    assert config.to_dict() == FFPConfig(preset="paper", **kept).to_dict()
    assert FFPConfig.from_file(path).to_dict() == FFPConfig(search_steps=7, **kept | {"num_samples": 128}).to_dict()


def test_a_percentage_is_answered_with_the_fraction():
    with pytest.raises(FFPError, match="found 20; for 20 % give 0.2$"):
        FFPConfig(sparsity=20)


def test_a_saved_config_may_hold_what_its_method_does_not_read(tmp_path):
    config = FFPConfig(method="uniform", learning_rate=0.5, search_steps=7)
    assert not config.reads("learning_rate") and not config.reads("search_steps") and config.reads("search_samples")
    assert FFPConfig.from_file(save(config, tmp_path)).to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", [FFPConfig, RecoveryConfig])
def test_texts_may_be_paths(kind, tmp_path):
    path = tmp_path / "text.jsonl"
    config = kind(dataset=path, eval_dataset=path)
    assert config.dataset == config.eval_dataset == str(path)
    for name, value in {"dataset": "", "eval_dataset": "", "text_column": ""}.items():
        with pytest.raises(FFPError, match=f"{name} must be a name o"):
            kind(**{name: value})


def test_every_text_of_a_mix_needs_a_window():
    with pytest.raises(FFPError, match="search_samples must be at least 3, a window of each of a, b, self, found 2"):
        FFPConfig(dataset="a,b,self", search_samples=2)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"unknown_option": 1}', '{"sparsity": "much"}', "\x00"])
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(FFPError):
        FFPConfig.from_file(path)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.0},
        {"sparsity": 1.0},
        {"sparsity": float("nan")},
        {"sparsity": True},
        {"min_retention": 0.9, "max_retention": 0.5},
        {"min_retention": -0.1},
        {"ridge_lambda": -1.0},
        {"ridge_lambda": float("inf")},
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"seq_len": 1},
        {"text_column": ""},
        {"seed": -1},
        {"hidden_sizes": [64, 0]},
        {"hidden_sizes": 64},
        {"method": "magic"},
        {"method": "homogeneous", "attention": "auto"},
        {"preset": "other"},
        {"dataset": ""},
        {"dataset": None},
        {"eval_samples": 0},
        {"rate_precision": 2.0},
        {"ridge_lambda_relative": 1},
    ],
)
def test_values_that_are_not_allowed(options):
    with pytest.raises(FFPError, match=next(iter(options))):
        FFPConfig(**options)


def test_every_option_is_documented():
    for name in FFPConfig.option_names():
        assert f"{name}: " in FFPConfig.__doc__


@pytest.mark.parametrize("given", [{"agent": "ppo"}, {"reward": "pruned"}])
@pytest.mark.parametrize("before", [{}, {"agent": "ppo"}])
def test_defaults_follow_what_is_given_beside_a_saved_config(before, given, tmp_path):
    path = save(FFPConfig(seed=3, **before), tmp_path)
    expected = FFPConfig(seed=3, **before | given)
    assert FFPConfig.from_file(path, **given).to_dict() == expected.to_dict()
    # What somebody has written is meant.
    (tmp_path / "mine.json").write_text(json.dumps({"search_steps": 26}))
    assert FFPConfig.from_file(tmp_path / "mine.json", agent="ppo").search_steps == 26

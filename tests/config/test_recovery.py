"""The options of a recovery: budgets, presets and what is refused."""

import json
from dataclasses import replace

import pytest

from optimum_ffp import FFPError, RecoveryConfig
from optimum_ffp.config.recovery import ADAPTER_RATE, PRESETS, WEIGHT_RATE, read_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("400k", 400_000), ("2M", 2_000_000), ("1.5B", 1_500_000_000), ("2,000", 2000), (12, 12), ("7", 7)],
)
def test_numbers_of_tokens(text, tokens):
    assert read_tokens(text) == tokens == RecoveryConfig(max_tokens=text).max_tokens


@pytest.mark.parametrize("text", ["", "2 million", "-3M", "M", "1e6", None])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(FFPError, match="a number of tokens is written as 400k, 2M"):
        read_tokens(text)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_what_is_not_given(preset):
    config = RecoveryConfig(preset=preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert config.stated() == {"seed": 0} | ({} if preset == "quick" else {"preset": preset})
    given = RecoveryConfig(preset=preset, max_tokens="5k", learning_rate=1e-3)
    assert (given.max_tokens, given.learning_rate) == (5000, 1e-3)
    # 200 steps, of a token where there are too few.
    assert given.batch_tokens == 25 and RecoveryConfig(max_tokens=50).batch_tokens == 1
    assert given.stated().keys() - {"preset"} == {"seed", "max_tokens", "learning_rate"}
    assert RecoveryConfig(preset=preset, max_tokens="5k", batch_tokens=96).stated()["batch_tokens"] == 96
    adapters = RecoveryConfig(preset=preset, lora=8)
    assert (config.learning_rate, adapters.learning_rate) == (WEIGHT_RATE, ADAPTER_RATE)
    assert adapters.stated().keys() == {"seed", "lora"} | ({"preset"} if preset != "quick" else set())


def test_a_file_of_options_and_the_record_of_a_recovery(tmp_path):
    given = {"preset": "standard", "lora": 8, "max_tokens": "3M", "seed": 4}
    path, config = tmp_path / "options.json", RecoveryConfig(**given)
    path.write_text(json.dumps(config.to_dict()))
    assert RecoveryConfig.from_file(path) == config
    assert RecoveryConfig.from_file(path, seed=5) == replace(config, seed=5)
    # What follows from other options by default does so from those beside the file.
    assert RecoveryConfig.from_file(path, max_tokens="1M") == RecoveryConfig(**given | {"max_tokens": "1M"})
    assert RecoveryConfig.from_file(path, preset="quick") == RecoveryConfig(lora=8, seed=4)
    assert RecoveryConfig.from_file(path, lora=16).learning_rate == ADAPTER_RATE
    assert RecoveryConfig.from_file(path, lora=0) == RecoveryConfig(**given | {"lora": 0})
    chosen = replace(config, batch_tokens=512, learning_rate=1e-3)
    path.write_text(json.dumps(chosen.to_dict()))
    found = RecoveryConfig.from_file(path, max_tokens="1M", lora=0)
    assert (found.batch_tokens, found.learning_rate) == (512, 1e-3)


def test_the_record_of_a_recovery(tmp_path):
    path, config = tmp_path / "ffp_config.json", RecoveryConfig(dataset="c4:0.5,self:0.5", max_tokens="3M")
    record = {"ffp_version": "0.1", "policy": {}, "recovery": []}
    path.write_text(json.dumps(record))
    with pytest.raises(FFPError, match="is the record of a prune alone; name the ffp_config.json of a recovered"):
        RecoveryConfig.from_file(path)
    record["recovery"] = [{"options": RecoveryConfig().to_dict()}, {"options": config.to_dict()}]
    path.write_text(json.dumps(record))
    assert RecoveryConfig.from_file(path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "options.json can't be read as a config"),
        ("[1]", "must hold a JSON object of options, found list"),
        ('{"sparsity": 0.2, "recovery": [3]}', "RecoveryConfig has no recovery, sparsity; it has dataset, "),
        ('{"lora": "much"}', "lora must be an integer of at least 0, found 'much'"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, message):
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(FFPError, match=message):
        RecoveryConfig.from_file(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "preset 'paper' is not known; choose from quick, standard, full"),
        ({"temperature": 0}, "temperature must be a number of at least 0.1, found 0"),
        ({"label_share": 1.5}, "label_share must be a number between 0 and 1, found 1.5"),
        ({"lora": -1}, "lora must be an integer of at least 0, found -1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"patience": 0}, "patience must be an integer of at least 1"),
        ({"dataset": "c4:0.7,self:0.7"}, "share"),
        ({"eval_dataset": "self"}, "eval_dataset self says little"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(FFPError, match=message):
        RecoveryConfig(**options)

"""The checkpoint of a recovered model: files of the pruned one, other weights, and a card and record of both steps."""

import json
import math

import pytest
import torch

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, RecoveryConfig
from optimum_ffp.checkpoint.pushing import check_saved
from optimum_ffp.checkpoint.recovered import save_recovered
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.utils.record import RecoveryRecord
from tests.helpers import CHECKPOINT_FILES, make_tokenizer, read_files


def make_record(source, **changes) -> RecoveryRecord:
    windows = {"split": "test", "windows": 2, "window_length": 24, "start_token": False}
    tests = [{"dataset": "/private/c4.txt"} | windows, {"dataset": "wikitext2"} | windows]
    curve = [{"step": step, "tokens": 96 * step, "kl": 0.5 / (1 + step), "perplexity": 40.0} for step in (0, 5, 10)]
    values = {
        "options": RecoveryConfig(dataset="/private/c4.txt:0.6,self:0.4", seed=3).to_dict(),
        "source": str(source),
        "teacher": "/private/dense model",
        "dense_teacher": True,
        "window_length": 24,
        "windows_per_step": 4,
        "passes": {"/private/c4.txt": 1.25},
        "curve": curve,
        "kept": curve[-1],
        "held_out": tests[0],
        "tokens": 960,
        "perplexity": {"dense": math.exp(1.0), "pruned": math.exp(2.0), "recovered": math.exp(1.5)} | tests[0],
        "other_texts": [{"dense": math.exp(2.0), "pruned": math.exp(3.0), "recovered": math.exp(2.5)} | tests[1]],
        "samples": {"Who?": "Me."},
        "compute_dtypes": {"dense": "float32", "pruned": "float32"},
        "dtype": "float32",
        "bf16": False,
        "seconds": 2.0,
        "processes": 1,
        "versions": {},
    }
    return RecoveryRecord(**values | changes)


@pytest.fixture
def model(folder):
    model = FFPModelForCausalLM.from_pretrained(folder)
    for weight in model.parameters():
        weight.data += 0.01
    return model


@pytest.fixture
def recover(model, tmp_path):
    """Save a recovery of a folder under a name."""
    return lambda source, name, **more: save_recovered(
        make_record(source), model, make_tokenizer(), tmp_path / name, **more
    )


def test_recovered_checkpoint_copies_policy_agent_log_and_plots(folder, recover, model):
    # Copies don't take over permissions.
    for file in folder.iterdir():
        file.chmod(0o555 if file.is_dir() else 0o444)
    recovered = recover(folder, "recovered")
    before, after = read_files(folder), read_files(recovered)
    assert after.keys() == CHECKPOINT_FILES | {"recovery-1.png"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.safetensors", "README.md", "ffp_config.json"}
    assert all(file.stat().st_mode & 0o200 for file in recovered.rglob("*"))
    assert check_saved(recovered) and load_agent(recovered).keys() == load_agent(folder).keys()
    options = [FFPConfig.from_file(place / "ffp_config.json", dataset="c4") for place in (folder, recovered)]
    assert options[0].to_dict() == options[1].to_dict()
    loaded = FFPModelForCausalLM.from_pretrained(recovered)
    assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), model.parameters()))


def test_record_has_pruning_and_recovery_without_local_folders(folder, recover):
    recovered = recover(folder, "recovered")
    content = json.loads((recovered / "ffp_config.json").read_text())
    (record,) = content.pop("recovery")
    before = json.loads((folder / "ffp_config.json").read_text())
    assert content == before | {"files": sorted([*CHECKPOINT_FILES, "recovery-1.png"])}
    assert record["tokens"] == 960 and record["options"]["dataset"] == "c4.txt:0.6,self:0.4"
    assert record["perplexity"]["recovered"] == pytest.approx(2.718281828**1.5)
    assert record["other_texts"][0]["pruned"] == pytest.approx(2.718281828**3)
    card = (recovered / "README.md").read_text()
    assert "private" not in (recovered / "ffp_config.json").read_text() + card
    assert "| **perplexity**, c4.txt (local) | 2.72 | 7.39 | **4.48** | 1.65 |" in card
    assert 'from_pretrained("./recovered"' in card


def test_model_card_says_dense_only_for_recorded_dense_model(folder, model, tmp_path):
    for is_dense in (True, False):
        record = make_record(folder, dense_teacher=is_dense, teacher="/private/other")
        card = (save_recovered(record, model, make_tokenizer(), tmp_path / f"{is_dense}") / "README.md").read_text()
        assert ("dense" in card.partition("## Pruning")[0]) == is_dense


def test_symlink_out_of_checkpoint_is_not_copied(folder, recover, tmp_path):
    (tmp_path / "secret").touch()
    (folder / "policy.png").unlink()
    (folder / "policy.png").symlink_to(tmp_path / "secret")
    with pytest.raises(FFPError, match=r"policy\.png"):
        recover(folder, "recovered")
    assert not (tmp_path / "recovered").exists()


def test_second_recovery_keeps_files_of_first(folder, recover):
    first = recover(folder, "first")
    second = recover(first, "second")
    assert read_files(second).keys() == CHECKPOINT_FILES | {"recovery-1.png", "recovery-2.png"}
    assert (second / "recovery-1.png").read_bytes() == (first / "recovery-1.png").read_bytes()
    with pytest.raises(FFPError, match="--overwrite"):
        recover(folder, "second")
    assert read_files(recover(folder, "second", overwrite=True)).keys() == read_files(first).keys()

"""The checkpoint of a recovered model: files of the pruned one, other weights, and a card and record of both steps."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, RecoveryConfig
from optimum_ffp.checkpoint.recovered import (
    RecoveryRecord,
    recovery_command,
    save_recovered,
)
from optimum_ffp.checkpoint.saving import check_saved, load_agent
from optimum_ffp.hub.upload import push_folder
from tests.helpers import FILES, contents, make_tokenizer


def make_record(source, **changes) -> RecoveryRecord:
    windows = {"split": "test", "windows": 2, "window_length": 24, "start_token": False}
    tests = [{"dataset": "/private/c4.txt"} | windows, {"dataset": "wikitext2"} | windows]
    curve = [
        {"step": step, "tokens": 96 * step, "kl": 0.5 / (1 + step), "perplexity": 40.0 - step} for step in (0, 5, 10)
    ]
    options = RecoveryConfig(dataset="/private/c4.txt,self", seed=3).to_dict()
    values = {
        "options": options,
        "stated": {
            "teacher": "/private/dense model",
            "dataset": options["dataset"],
            "max_tokens": 960,
            "bf16": False,
            "seed": 3,
        },
        "source": str(source),
        "teacher": "/private/dense model",
        "window_length": 24,
        "windows_per_step": 4,
        "passes": {"/private/c4.txt": 1.25},
        "curve": curve,
        "kept": curve[-1],
        "held_out": tests[0],
        "tests": tests,
        "losses": {
            name: [[loss, loss], [loss + 1, loss]]
            for name, loss in {"dense": 1.0, "pruned": 2.0, "recovered": 1.5}.items()
        },
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
def recovered(folder, model, tmp_path):
    return save_recovered(make_record(folder), model, make_tokenizer(), tmp_path / "recovered")


def test_policy_agent_log_and_plots_are_kept(folder, recovered, model):
    before, after = contents(folder), contents(recovered)
    assert after.keys() == FILES | {"recovery.png"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.safetensors", "README.md", "ffp_config.json"}
    assert check_saved(recovered) and load_agent(recovered).keys() == load_agent(folder).keys()
    policies = [json.loads((place / "ffp_config.json").read_text())["policy"] for place in (folder, recovered)]
    assert policies[0] == policies[1]
    options = [FFPConfig.from_file(place / "ffp_config.json").to_dict() for place in (folder, recovered)]
    assert options[0] == options[1]
    loaded = FFPModelForCausalLM.from_pretrained(recovered)
    assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), model.parameters()))


def test_the_record_has_both_steps_and_no_folders(folder, recovered):
    content = json.loads((recovered / "ffp_config.json").read_text())
    (record,) = content.pop("recovery")
    before = json.loads((folder / "ffp_config.json").read_text())
    assert content == before | {"files": sorted([*FILES, "recovery.png"])}
    assert record["tokens"] == 960 and record["options"]["dataset"] == "c4.txt,self"
    assert record["perplexity"]["recovered"] == pytest.approx(2.718281828**1.5)
    assert record["other_texts"][0]["pruned"] == pytest.approx(2.718281828**2.5)
    assert "private" not in (recovered / "ffp_config.json").read_text() + (recovered / "README.md").read_text()


def test_the_card_tells_of_the_recovery_before_the_pruning(folder, recovered):
    card, before = (ModelCard.load(one / "README.md") for one in (recovered, folder))
    heading, _, rest = card.text.strip().partition("\n")
    assert heading.endswith("pruned, recovered") and rest.index("recovery.png") < rest.index("## Pruning")
    assert "| c4.txt | 2.718 | 7.389 | **4.482** |" in rest and "| wikitext2 | 4.482 | 12.182 | **7.389** |" in rest
    assert "960 tokens of 50 % c4.txt, 50 % text sampled from the model itself; c4.txt was read 1.2 times; in" in rest
    assert "3,840 tokens in forward passes" in rest and "from\n0.5000 to 0.0455 nats per token" in rest
    assert "./recovered" in rest and "tiny ffp" not in rest.replace(recovery_command(make_record(folder)), "")
    assert [result.metric_value for result in card.data.eval_results] == [4.4817, 7.3891]
    assert "Salesforce/wikitext" not in (card.data.datasets or []) and card.data.tags == before.data.tags
    # All that the card of the pruned model says follows.
    own = re.sub(r"\./'?tiny ffp'?", "", before.text.strip().partition("\n")[2])
    assert own.split()[-60:] == rest.split()[-60:]


def test_the_command_has_what_was_stated(folder):
    assert recovery_command(make_record(folder)) == (
        "optimum-cli ffp recover -m 'tiny ffp' OUT --teacher 'dense model' --dataset c4.txt,self "
        "--max-tokens 960 --no-bf16 --seed 3"
    )


def test_a_single_dataset_in_the_card_stays_one(folder, model, tmp_path):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("\ntags:", "\ndatasets: me/my-data\ntags:", 1))
    save_recovered(make_record(folder), model, make_tokenizer(), tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.datasets == ["me/my-data"]


def test_the_card_says_what_figures_were_computed_in(folder, model, recovered, tmp_path):
    assert "\nComputed in float32.\n" in (recovered / "README.md").read_text().partition("## Pruning")[0]
    record = make_record(folder, compute_dtypes={"dense": "float32", "pruned": "bfloat16"})
    save_recovered(record, model, make_tokenizer(), tmp_path / "both")
    assert "\nComputed in bfloat16, the dense model in float32.\n" in (tmp_path / "both" / "README.md").read_text()


def test_where_the_divergence_was_smallest_is_told(folder, model, tmp_path):
    record = make_record(folder)
    record = make_record(folder, kept=record.curve[1])
    save_recovered(record, model, make_tokenizer(), tmp_path / "early")
    card = (tmp_path / "early" / "README.md").read_text()
    assert "The weights are those after 480 tokens" in card and "0.5000 to 0.0833" in card


def test_a_card_of_the_users_own_becomes_that_of_a_recovered_model(folder, model, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nHello.\n")
    saved = save_recovered(make_record(source), model, make_tokenizer(), tmp_path / "out")
    card = ModelCard.load(saved / "README.md")
    assert card.data.model_name == "Mine" and card.data.license == "mit" and len(card.data.eval_results) == 2
    assert "Hello." in card.text


def test_folders_that_exist_are_not_replaced(folder, model, recovered):
    with pytest.raises(FFPError, match="exists; name another folder"):
        save_recovered(make_record(folder), model, make_tokenizer(), recovered)


def test_a_model_of_the_hub_is_recovered(folder, model, recovered, hub, tmp_path):
    push_folder(folder, "me/tiny")
    saved = save_recovered(make_record("me/tiny"), model, make_tokenizer(), tmp_path / "out")
    # The commands load the new model, and the one that was recovered is named as it was.
    words = (saved / "README.md").read_text()
    assert "optimum-cli ffp recover -m me/tiny OUT" in words and '"./out"' in words and '"me/tiny"' not in words
    assert contents(saved).keys() == contents(recovered).keys()


def test_a_second_recovery_numbers_the_plot_of_the_first(folder, model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_recovered(make_record(folder), model, make_tokenizer(), first)
    record = make_record(first, curve=make_record(folder).curve[:2])
    save_recovered(record, model, make_tokenizer(), second)
    assert contents(second).keys() == FILES | {"recovery.png", "recovery-1.png"}
    assert (second / "recovery-1.png").read_bytes() == (first / "recovery.png").read_bytes()
    assert (second / "recovery.png").read_bytes() != (first / "recovery.png").read_bytes()
    card = (second / "README.md").read_text()
    headings = ("(recovery.png)", "## Recovery 1", "(recovery-1.png)", "## Pruning")
    assert [*headings] == sorted(headings, key=card.index)
    assert card.index("| before this training |") < card.index("## Recovery 1") < card.index("| pruned |")
    assert "after it was pruned and trained as described below" in card.partition("## Recovery 1")[0]
    # It may be replaced as what it is.
    save_recovered(record, model, make_tokenizer(), second, overwrite=True)


def test_files_of_the_pruned_model_may_be_read_only(folder, model, tmp_path):
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o444)
    save_recovered(make_record(folder), model, make_tokenizer(), tmp_path / "recovered")
    assert all(file.stat().st_mode & 0o200 for file in (tmp_path / "recovered").rglob("*"))

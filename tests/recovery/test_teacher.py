"""Where the dense model and the text of a pruned one are found."""

import json
from dataclasses import replace
from functools import partial

import pytest

from optimum_ffp import FFPError, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions, read_model_config
from optimum_ffp.recovery.teacher import read_teacher, with_dataset


def test_the_record_names_the_dense_model_with_its_revision(hub, pruned, folder):
    # The revision of the pruned model is not that of another.
    options = LoadOptions(revision="of-the-pruned-model", token="secret")
    given = read_teacher(str(folder), "named", options, lambda name, read_with: read_with)
    assert given == ("named", LoadOptions(token="secret"))
    name, found = read_teacher(str(folder), pruned[0].model_id, LoadOptions(), read_model_config)
    assert name == pruned[0].model_id and found.model_type == "llama"


def test_a_dense_model_that_is_not_known(tmp_path, folder):
    with pytest.raises(FFPError, match="has no record of its pruning, or .*; copy ffp_config.json from"):
        read_teacher(str(tmp_path), "named", LoadOptions(), read_model_config)
    (tmp_path / "ffp_config.json").write_text('{"ffp_version": "0.1", "policy": {}}')
    with pytest.raises(FFPError, match="is needed: it has no record of it; name it by --teacher"):
        read_teacher(str(tmp_path), None, LoadOptions(), read_model_config)


def test_a_local_dense_model_is_not_looked_for_by_its_name(tmp_path):
    """On the Hub, or here, another may have it."""

    def record(**provenance) -> None:
        content = {"ffp_version": "0.1", "policy": {}, "provenance": provenance}
        (tmp_path / "ffp_config.json").write_text(json.dumps(content))

    read = partial(read_teacher, str(tmp_path), None, LoadOptions(), lambda name, options: options.revision)
    record(base_model="gpt2", revision=None)
    with pytest.raises(FFPError, match="names gpt2 without a revision on the Hub, .*; name it by --teacher"):
        read()
    record(base_model="gpt2", revision="abc")
    assert read() == ("gpt2", "abc")
    record(base_model="owner/model", revision=None)
    assert read() == ("owner/model", None)


def test_column_and_start_token_come_with_the_text_of_the_prune(tmp_path):
    content = {"ffp_version": "0.1", "policy": {}, "dataset": "owner/text", "text_column": "summary"}
    (tmp_path / "ffp_config.json").write_text(json.dumps(content | {"start_token": "never"}))
    found = with_dataset(RecoveryConfig(), str(tmp_path), LoadOptions())
    assert (found.text_column, found.start_token) == ("summary", "never")
    assert with_dataset(RecoveryConfig(text_column="body"), str(tmp_path), LoadOptions()).text_column == "body"
    own = with_dataset(RecoveryConfig(dataset="other.txt"), str(tmp_path), LoadOptions())
    assert (own.text_column, own.start_token) == (None, "auto")


@pytest.mark.parametrize(
    ("pruned_on", "trained_on"),
    [
        ("c4:0.75,owner/text:0.25", None),
        ("owner/text:english", None),
        ("my_text.jsonl", "c4"),
        ("wikitext2,c4", "c4"),
        ("self", "c4"),
        ("c4:0.5,my_text:0.5", "c4"),
    ],
)
def test_the_text_of_the_prune_is_trained_on_where_it_is_known(pruned_on, trained_on, tmp_path, caplog):
    (tmp_path / "ffp_config.json").write_text(json.dumps({"ffp_version": "0.1", "policy": {}, "dataset": pruned_on}))
    found = with_dataset(RecoveryConfig(max_tokens="1k"), str(tmp_path), LoadOptions())
    assert (found.dataset, found.max_tokens) == (trained_on or pruned_on, 1000)
    line = f"{tmp_path} was pruned on {pruned_on} and is trained on c4; name a text by --dataset (dataset)"
    assert [record.getMessage() for record in caplog.records] == ([line] if trained_on else [])
    named = RecoveryConfig(dataset="other.txt")
    assert with_dataset(named, str(tmp_path), LoadOptions()) == replace(named, start_token="auto")

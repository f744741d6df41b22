"""Where the dense model and the text of a pruned one are found."""

import json

import pytest

from optimum_ffp import FFPError, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions, read_model_config
from optimum_ffp.recovery.teacher import read_teacher, with_dataset


def test_the_record_names_the_dense_model_with_its_revision(hub, pruned, folder):
    # The revision of the pruned model is not that of another.
    options = LoadOptions(revision="of-the-pruned-model", cache_dir="cache")
    given = read_teacher(str(folder), "named", options, lambda name, read_with: read_with)
    assert given == ("named", LoadOptions(cache_dir="cache"))
    name, found = read_teacher(str(folder), pruned[0].model_id, LoadOptions(), read_model_config)
    assert name == pruned[0].model_id and found.model_type == "llama"


def test_a_dense_model_that_is_not_known(tmp_path, folder):
    with pytest.raises(FFPError, match="has no record of its pruning; copy ffp_config.json from the checkpoint"):
        read_teacher(str(tmp_path), "named", LoadOptions(), read_model_config)
    (tmp_path / "ffp_config.json").write_text('{"ffp_version": "0.1", "policy": {}}')
    with pytest.raises(FFPError, match="is needed: it has no record of it; name it by --teacher"):
        read_teacher(str(tmp_path), None, LoadOptions(), read_model_config)


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
    assert with_dataset(named, str(tmp_path), LoadOptions()) is named

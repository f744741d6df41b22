"""Where the dense model and the text of a pruned one are found."""

import pytest

from optimum_ffp import FFPError, RecoveryConfig
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.recovery.plan import make_recovery_plan
from optimum_ffp.recovery.teacher import find_teacher
from tests.helpers import write_record as save


@pytest.fixture
def write_record(tmp_path):
    def write(provenance=(), **options) -> str:
        save(tmp_path, provenance=dict(provenance), recovery=[], **options)
        return str(tmp_path)

    return write


def test_teacher_defaults_to_recorded_base_model_and_revision(write_record):
    # The revision of the pruned model is not that of another.
    options = LoadOptions(revision="of-the-pruned-model", token="secret")
    folder = write_record({"base_model": "gpt2", "revision": "abc"})
    assert find_teacher(folder, "named", options) == ("named", LoadOptions(token="secret"))
    assert find_teacher(folder, None, options) == ("gpt2", LoadOptions(token="secret", revision="abc"))
    folder = write_record({"base_model": "owner/model", "revision": None})
    assert find_teacher(folder, None, options) == ("owner/model", LoadOptions(token="secret"))


def test_local_base_model_requires_teacher_option(write_record):
    """On the Hub, or here, another may have it."""
    with pytest.raises(FFPError, match="--base-model.*--teacher"):
        find_teacher(write_record({"base_model": "gpt2", "revision": None}), None, LoadOptions())


def test_recorded_dataset_brings_text_column_and_start_token(write_record):
    folder = write_record(dataset="owner/text", text_column="summary", start_token="never")
    found = make_recovery_plan(RecoveryConfig(), folder, LoadOptions())
    assert (found.text_column, found.start_token) == ("summary", "never")
    assert make_recovery_plan(RecoveryConfig(text_column="body"), folder, LoadOptions()).text_column == "body"
    named = make_recovery_plan(RecoveryConfig(dataset="other.txt"), folder, LoadOptions())
    assert (named.dataset, named.text_column, named.start_token) == ("other.txt", None, "auto")


@pytest.mark.parametrize(
    ("pruned_on", "is_taken"),
    [
        ("c4:0.75,owner/text:0.25", True),
        ("owner/text:english", True),
        ("my_text.jsonl", False),
        ("wikitext2,c4", False),
        ("self", False),
        ("c4:0.5,my_text:0.5", False),
    ],
)
def test_recorded_dataset_is_used_only_if_on_hub(pruned_on, is_taken, write_record, caplog):
    found = make_recovery_plan(RecoveryConfig(), write_record(dataset=pruned_on), LoadOptions())
    assert found.dataset == (pruned_on if is_taken else "c4")
    assert ("--dataset" in caplog.text) != is_taken

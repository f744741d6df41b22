import json

import pytest

from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.checkpoint.pushing import push_checkpoint
from optimum_ffp.errors import FFPError
from optimum_ffp.hub.record import policy_rows, prune_record, read_policy
from optimum_ffp.utils.record import PolicyRecord
from tests.helpers import write_record


def test_record_of_folder_is_read_or_none(tmp_path):
    assert prune_record(tmp_path) is None and prune_record(tmp_path / "model.gguf") is None
    path = tmp_path / "ffp_config.json"
    for content in ("{", "[1]", '{"sparsity": 0.2}'):
        path.write_text(content)
        assert prune_record(tmp_path) is None
    content = write_record(tmp_path, quantization={"scheme": "w8a8"})
    assert prune_record(tmp_path).to_dict() == content and [*prune_record(tmp_path).options] == [*content][:41]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("policy", "units", 5),
        ("policy", "units", [{"layer": 0, "unit": "ffn", "items": 0, "kept": 0}]),
        ("search", "budget", 5),
        ("provenance", "license", ["mit"]),
        ("provenance", "model_sparsity", "0.2"),
        ("model", "chat", None),
    ],
)
def test_record_with_value_of_other_type_is_rejected(tmp_path, section, key, value):
    write_record(tmp_path, **{section: {key: value}})
    with pytest.raises(FFPError, match="damaged ffp_config.json") as caught:
        prune_record(tmp_path)
    assert "\n" not in str(caught.value)
    record = write_record(tmp_path)
    del record[section]
    (tmp_path / "ffp_config.json").write_text(json.dumps(record))
    with pytest.raises(FFPError, match=section):
        prune_record(tmp_path)


@pytest.mark.slow
def test_record_of_repository_is_read_at_revision(hub, folder, tmp_path):
    push_checkpoint(folder, "me/it")
    first = hub.repositories["me/it"].commits[-1].oid
    cache = {"cache_dir": tmp_path / "cache"}
    assert prune_record("me/it", **cache) == prune_record("me/it", revision=first, **cache) == prune_record(folder)
    assert prune_record("me/other", **cache) is None


@pytest.mark.slow
def test_policy_on_hub_is_downloaded_once(hub, folder):
    with pytest.raises(FFPError, match="no policy me/policy"):
        policy_rows("me/policy")
    push_checkpoint(folder, "me/policy")
    assert policy_rows("me/policy") == prune_record(folder).policy.units
    requests = len(hub.requests)
    assert policy_rows("me/policy") == prune_record(folder).policy.units and len(hub.requests) == requests


def test_record_tells_last_window_length_and_start_token(tmp_path):
    step = write_record(tmp_path)["recovery"][0]
    write_record(tmp_path, recovery=[])
    pruned = prune_record(tmp_path)
    assert (pruned.window_length, pruned.start_token) == (32, "auto")
    write_record(tmp_path, recovery=[step | {"options": {"start_token": "never"}}])
    recovered = prune_record(tmp_path)
    assert (recovered.window_length, recovered.start_token) == (24, "never")


UNITS = (Unit(0, "query_head", 4, 100, 10), Unit(0, "channel", 16, 30, multiple=4))


def test_policy_is_read_from_record_folder_or_unit_list(tmp_path):
    # Sizes need not be whole steps of the unit.
    policy = PruningPolicy(UNITS, (2, 11))
    record = write_record(tmp_path, policy=PolicyRecord.of(policy).to_dict())
    (tmp_path / "sizes.json").write_text(json.dumps(record["policy"]["units"]))
    for name in ("", "ffp_config.json", "sizes.json"):
        assert read_policy(str(tmp_path / name), UNITS) == policy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no policy .*sizes.json; pass a pruned folder"),
        ("{", "can't be read as the units of a policy"),
        ("{}", "no policy"),
        ('[5, "x"]', "can't be read"),
        ("[{}]", "can't be read"),
        ([{"kept": "2"}, {}], "can't be read"),
        ([{"group": "head"}, {}], "can't be read"),
        ([{"unit": "mlp"}, {}], "can't be read"),
        ([{"items": 3}, {}], "another"),
    ],
)
def test_unusable_policy_is_one_line_error(tmp_path, content, message):
    file = tmp_path / "sizes.json"
    if isinstance(content, list):
        rows = PruningPolicy(UNITS, (2, 12)).rows
        content = json.dumps([row.to_dict() | changes for row, changes in zip(rows, content)])
    if content is not None:
        file.write_text(content)
    with pytest.raises(FFPError, match=message) as caught:
        read_policy(str(file), UNITS)
    assert "\n" not in str(caught.value)

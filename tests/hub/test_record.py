import json

import pytest

from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.checkpoint.pushing import push_checkpoint
from optimum_ffp.errors import FFPError
from optimum_ffp.hub.record import policy_rows, prune_record, read_policy, recorded_length, recorded_start_token


def test_the_record_of_a_folder(tmp_path):
    assert prune_record(tmp_path) == prune_record(tmp_path / "model.gguf") == {}
    path = tmp_path / "ffp_config.json"
    for content in ("{", "[1]", '{"sparsity": 0.2}'):
        path.write_text(content)
        assert prune_record(tmp_path) == {}
    record = {"ffp_version": "0.1", "policy": {"sparsity": 0.2}}
    path.write_text(json.dumps(record))
    assert prune_record(tmp_path) == record


@pytest.mark.slow
def test_the_record_of_a_repository(hub, folder, tmp_path):
    push_checkpoint(folder, "me/it")
    first = hub.repositories["me/it"].commits[-1].oid
    cache = {"cache_dir": tmp_path / "cache"}
    assert prune_record("me/it", **cache) == prune_record("me/it", revision=first, **cache) == prune_record(folder)
    assert prune_record("me/other", **cache) == {}


@pytest.mark.slow
def test_a_policy_on_the_hub_is_looked_up_once(hub, folder):
    with pytest.raises(FFPError, match="no policy me/policy"):
        policy_rows("me/policy")
    push_checkpoint(folder, "me/policy")
    assert policy_rows("me/policy") == prune_record(folder)["policy"]["units"]
    requests = len(hub.requests)
    assert policy_rows("me/policy") == prune_record(folder)["policy"]["units"] and len(hub.requests) == requests


def test_how_a_model_was_measured_last():
    assert recorded_length({}) is None and recorded_start_token({}) == "never"
    pruned = {"start_token": "auto", "provenance": {"perplexity": {"dense": 20.0, "window_length": 512}}}
    assert recorded_length(pruned) == 512 and recorded_start_token(pruned) == "auto"
    recovered = pruned | {
        "recovery": [{"options": {"start_token": "never"}, "perplexity": {"pruned": 30.0, "window_length": 24}}]
    }
    assert recorded_length(recovered) == 24 and recorded_start_token(recovered) == "never"


UNITS = (Unit(0, "query_head", 4, 100, 10), Unit(0, "channel", 16, 30, multiple=4))


def test_a_policy_is_read_from_a_record_its_folder_or_a_list_of_units(tmp_path):
    # Sizes need not be whole steps of the unit.
    policy = PruningPolicy(UNITS, (2, 11))
    record = {"ffp_version": "0.2", "policy": policy.to_dict()}
    (tmp_path / "ffp_config.json").write_text(json.dumps(record))
    (tmp_path / "sizes.json").write_text(json.dumps(record["policy"]["units"]))
    for name in ("", "ffp_config.json", "sizes.json"):
        assert read_policy(str(tmp_path / name), UNITS) == policy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no policy .*sizes.json; pass a pruned folder"),
        ("{", "can't be read as a policy"),
        ("{}", "no policy"),
        ('[5, "x"]', "no policy"),
        ([{"items": 3}, {}], "another"),
    ],
)
def test_a_policy_that_can_not_be_used_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "sizes.json"
    if isinstance(content, list):
        rows = PruningPolicy(UNITS, (2, 12)).to_dict()["units"]
        content = json.dumps([row | changes for row, changes in zip(rows, content)])
    if content is not None:
        file.write_text(content)
    with pytest.raises(FFPError, match=message) as caught:
        read_policy(str(file), UNITS)
    assert "\n" not in str(caught.value)

import json

import pytest

from optimum_ffp.checkpoint.pushing import push_checkpoint
from optimum_ffp.errors import FFPError
from optimum_ffp.hub.record import prune_record, recorded_length, recorded_start_token
from optimum_ffp.utils.folders import recorded_files


def test_the_record_of_a_folder(tmp_path):
    assert prune_record(tmp_path) == prune_record(tmp_path / "model.gguf") == {}
    path = tmp_path / "ffp_config.json"
    for content in ("{", "[1]", '{"sparsity": 0.2}'):
        path.write_text(content)
        assert prune_record(tmp_path) == {}
    record = {"ffp_version": "0.1", "policy": {"sparsity": 0.2}}
    path.write_text(json.dumps(record))
    assert prune_record(tmp_path) == record


@pytest.mark.parametrize("value", [5, [1], [{}], None, "x", {"a": [1]}])
@pytest.mark.parametrize(
    "keys",
    [
        ["files"],
        ["policy"],
        ["policy", "units"],
        ["provenance"],
        ["provenance", "parameters"],
        ["provenance", "perplexity"],
        ["provenance", "perplexity", "window_length"],
        ["recovery"],
        ["schema_version"],
        ["start_token"],
    ],
)
def test_an_odd_record_is_read_or_refused(tmp_path, keys, value):
    path = tmp_path / "ffp_config.json"
    record = entry = {"ffp_version": "0.1", "policy": {}, "provenance": {"perplexity": {}}}
    *parents, last = keys
    for key in parents:
        entry = entry[key]
    entry[last] = value
    path.write_text(json.dumps(record))
    try:
        record = prune_record(tmp_path)
    except FFPError as error:
        assert str(path) in str(error) and ".".join(keys) in str(error) and "\n" not in str(error)
    else:
        recorded_files(record, ["x"]), recorded_start_token(record), recorded_length(record)


@pytest.mark.slow
def test_the_record_of_a_repository(hub, folder, tmp_path):
    push_checkpoint(folder, "me/it")
    first = hub.repositories["me/it"].commits[-1].oid
    cache = {"cache_dir": tmp_path / "cache"}
    assert prune_record("me/it", **cache) == prune_record("me/it", revision=first, **cache) == prune_record(folder)
    assert prune_record("me/other", **cache) == {}


def test_how_a_model_was_measured_last():
    assert recorded_length({}) is None and recorded_start_token({}) == "never"
    pruned = {"start_token": "auto", "provenance": {"perplexity": {"dense": 20.0, "window_length": 512}}}
    assert recorded_length(pruned) == 512 and recorded_start_token(pruned) == "auto"
    recovered = pruned | {
        "recovery": [{"options": {"start_token": "never"}, "perplexity": {"pruned": 30.0, "window_length": 24}}]
    }
    assert recorded_length(recovered) == 24 and recorded_start_token(recovered) == "never"

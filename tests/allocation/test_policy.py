import json

import pytest

from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.errors import FFPError


UNITS = (Unit(0, "kv_group", 4, 100, 10, required=True), Unit(0, "channel", 16, 30))


def test_policy_retentions_parameters_and_sparsity():
    policy = PruningPolicy(UNITS, (2, 12))
    assert policy.retentions == (0.5, 0.75)
    assert policy.kept_parameters == 2 * 100 + 10 + 12 * 30
    assert policy.sparsity == pytest.approx(1 - 570 / 890)
    assert PruningPolicy.dense(UNITS).sparsity == 0


def test_policy_round_trips_and_missing_group_means_kv_group():
    units = (Unit(0, "query_head", 4, 100, 10), UNITS[1])
    policy = PruningPolicy(units, (2, 12))
    saved = json.loads(json.dumps(policy.to_dict()))
    assert [row["group"] for row in saved["units"]] == ["query_head", "channel"]
    assert PruningPolicy.from_dict(saved, units) == policy
    with pytest.raises(FFPError, match="attention"):
        PruningPolicy.from_dict(saved, UNITS)
    for row in saved["units"]:
        del row["group"]
    assert PruningPolicy.from_dict(saved, UNITS).sizes == (2, 12)
    with pytest.raises(FFPError, match="attention"):
        PruningPolicy.from_dict(saved, units)


def test_removed_units_have_no_parameters_and_do_not_grow_back():
    units = (*UNITS, Unit(1, "kv_group", 4, 100, 10), Unit(1, "channel", 16, 30, 5), Unit(2, "channel", 16, 30, 5))
    policy = PruningPolicy(units, (4, 0, 0, 0, 8))
    assert policy.kept_parameters == 410 + 245 and policy.kept_layers(3) == [0, 2]
    down, up = policy.neighbors()
    assert (down.sizes, up.sizes) == ((3, 0, 0, 0, 7), (4, 0, 0, 0, 9))
    least = PruningPolicy(units, (1, 0, 0, 0, 1))
    assert least.neighbors()[0] == least
    assert PruningPolicy.from_dict(policy.to_dict(), units) == policy


@pytest.mark.parametrize("sizes", [(0, 12), (5, 12), (2, 17), (2,), (2, 12, 1), (2.0, 12), (True, 12), ("2", 12)])
def test_invalid_sizes_are_rejected(sizes):
    with pytest.raises(FFPError):
        PruningPolicy(UNITS, sizes)


@pytest.mark.parametrize("data", [{}, {"units": 3}, {"units": [{"layer": 0}]}, [], None])
def test_malformed_policies_are_rejected(data):
    with pytest.raises(FFPError, match="policy"):
        PruningPolicy.from_dict(data, UNITS)

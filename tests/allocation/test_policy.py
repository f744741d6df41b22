import json

import pytest

from optimum_ffp.allocation.policy import PruningPolicy, Unit, UnitSize
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
    saved = json.loads(json.dumps([row.to_dict() for row in policy.rows]))
    assert [(row["group"], row["retention"]) for row in saved] == [("query_head", 0.5), ("channel", 0.75)]
    rows = [*map(UnitSize.from_dict, saved)]
    assert PruningPolicy.from_rows(rows, units) == policy
    with pytest.raises(FFPError, match="attention"):
        PruningPolicy.from_rows(rows, UNITS)
    for row in saved:
        del row["group"]
    rows = [*map(UnitSize.from_dict, saved)]
    assert PruningPolicy.from_rows(rows, UNITS).sizes == (2, 12)
    with pytest.raises(FFPError, match="attention"):
        PruningPolicy.from_rows(rows, units)


def test_removed_units_have_no_parameters_and_do_not_grow_back():
    units = (*UNITS, Unit(1, "kv_group", 4, 100, 10), Unit(1, "channel", 16, 30, 5), Unit(2, "channel", 16, 30, 5))
    policy = PruningPolicy(units, (4, 0, 0, 0, 8))
    assert policy.kept_parameters == 410 + 245 and policy.kept_layers(3) == [0, 2]
    down, up = policy.neighbors()
    assert (down.sizes, up.sizes) == ((3, 0, 0, 0, 7), (4, 0, 0, 0, 9))
    least = PruningPolicy(units, (1, 0, 0, 0, 1))
    assert least.neighbors()[0] == least
    assert PruningPolicy.from_rows(policy.rows, units) == policy


@pytest.mark.parametrize("sizes", [(0, 12), (5, 12), (2, 17), (2,), (2, 12, 1), (2.0, 12), (True, 12), ("2", 12)])
def test_invalid_sizes_are_rejected(sizes):
    with pytest.raises(FFPError):
        PruningPolicy(UNITS, sizes)

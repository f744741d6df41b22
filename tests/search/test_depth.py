"""Which parts are removed whole, and how many, by losses that are known."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.errors import FFPError
from optimum_ffp.search.depth import PATIENCE, max_evaluations, parts_of, remove_whole


UNITS = tuple(
    unit
    for layer in range(6)
    for unit in (Unit(layer, "kv_group", 4, 10, required=layer == 0), Unit(layer, "channel", 16, 10, 5))
)


COSTS = [unit.parameters for unit in UNITS]


def removed_by(policy):
    return tuple(index for index, size in enumerate(policy.sizes) if not size)


def removals(depth, loss_of):
    """What is removed, in order, where no number of removals meets the budget."""
    tried = []

    def without(removed):
        tried.append(removed)
        raise FFPError("removes too little")

    with pytest.raises(FFPError, match="too little"):
        remove_whole(SimpleNamespace(units=UNITS, shares=COSTS, without=without), depth, None, loss_of)
    return tried


def test_first_attention_is_never_removed():
    assert parts_of(UNITS, "sublayers") == [(index,) for index in range(1, 12)]
    assert parts_of(UNITS, "layers") == [(index, index + 1) for index in range(2, 12, 2)]


@given(st.lists(st.floats(-1, 10), min_size=12, max_size=12), st.sampled_from(["layers", "sublayers"]))
def test_independent_parts_are_removed_by_loss_per_parameter(losses, depth):
    calls = []

    def loss_of(policy):
        calls.append(policy)
        return sum(losses[index] for index in removed_by(policy))

    parts, found = parts_of(UNITS, depth), removals(depth, loss_of)
    order = [tuple(sorted({*after} - {*before})) for before, after in pairwise(found)]
    assert sorted(order) == parts
    rates = [sum(losses[i] for i in part) / sum(COSTS[i] for i in part) for part in order]
    assert rates == pytest.approx(sorted(rates), abs=1e-9)
    assert len(calls) + len(parts) + 1 <= max_evaluations(len(parts))


def test_losses_are_remeasured_after_each_removal():
    def loss_of(policy):
        removed = removed_by(policy)
        # The third layer makes up for the second, and the other way around.
        return 0.1 * len(removed) + 0.01 * sum(removed) + 5 * ({2, 4} <= {*removed})

    none, first, second, *_ = removals("layers", loss_of)
    assert (none, first, second) == ((), (2, 3), (2, 3, 6, 7))


@pytest.mark.parametrize(
    ("best", "least", "whole"), [(0, 0, 11), (1, 0, 11), (3, 0, 11), (7, 3, 11), (11, 0, 3), (0, 2, 11)]
)
def test_number_of_removed_parts_minimizes_loss(best, least, whole):
    tried = []

    def without(removed):
        if len(removed) < least:
            raise FFPError("removes too little")
        return removed

    def policy_of(removed):
        tried.append(len(removed))
        sizes = np.array([unit.groups for unit in UNITS]) // (1 if len(removed) >= whole else 2)
        sizes[[*removed]] = 0
        return PruningPolicy(UNITS, tuple(sizes.tolist()))

    def loss_of(policy):
        number = policy.sizes.count(0)
        return abs(number - best) if policy.sizes[0] < 4 or number == whole == len(tried) - 1 else number

    # Stands for a budget, and what is removed for that of the rest.
    budget = SimpleNamespace(units=UNITS, shares=COSTS, without=without)
    chosen = remove_whole(budget, "sublayers", policy_of, loss_of)
    best = min(max(best, least), whole)
    assert len(chosen) == best
    assert tried == [*range(least, min(best + PATIENCE, whole, 11) + 1)]

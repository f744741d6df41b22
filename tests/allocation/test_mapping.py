import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.allocation.mapping import uniform
from optimum_ffp.allocation.policy import Unit, block_parameters
from optimum_ffp.config.choices import find_choice
from optimum_ffp.errors import FFPError
from tests.helpers import SMOLLM2, sparsity_budget, step_parameters


greedy, water_filling = (find_choice("mapping", name).map_scores for name in ("greedy", "water-filling"))
MAPPINGS = greedy, water_filling, lambda scores, budget: uniform(budget)
units_strategy = st.lists(
    st.builds(
        Unit,
        layer=st.integers(0, 50),
        group=st.sampled_from(["kv_group", "channel"]),
        groups=st.integers(1, 40).map(lambda steps: steps * 4),
        group_parameters=st.integers(1, 5000),
        fixed_parameters=st.integers(0, 100),
        multiple=st.sampled_from([1, 2, 4]),
    ),
    min_size=1,
    max_size=12,
)


@given(
    units=units_strategy,
    data=st.data(),
    sparsity=st.floats(0.001, 0.999),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    precision=st.sampled_from([None, 0.01, 0.1]),
    mapping=st.sampled_from(MAPPINGS),
)
def test_every_mapping_meets_budget_for_any_input(units, data, sparsity, bounds, precision, mapping):
    scores = np.array(data.draw(st.lists(st.floats(-50, 50), min_size=len(units), max_size=len(units))))
    try:
        budget = sparsity_budget(units, sparsity, *bounds, precision)
    except FFPError as error:
        # Refused only for a reason: the bounds leave no size, or the target is out of their reach.
        if "can't be met" in str(error):
            check_infeasible(units, sparsity, bounds)
        return
    removed = data.draw(st.sets(st.integers(0, len(units) - 1)) | st.just(set()))
    budget = budget.without(removed)
    policy = mapping(scores, budget)
    assert {index for index, size in enumerate(policy.sizes) if size == 0} == removed

    target = (1 - Fraction(str(sparsity))) * block_parameters(units)
    gap = float(target - int(policy.kept_parameters))
    assert gap >= 0
    sizes = np.array(policy.sizes)
    assert (sizes >= budget.smallest).all() and (sizes <= budget.largest).all()
    assert (sizes % budget.multiples == 0).all()
    if (sizes == budget.largest).all():
        return
    movable = [(step_parameters(unit), len(sizes) - 1) for unit, sizes in zip(units, budget.sizes) if len(sizes) > 1]
    finest, coarsest = min(movable, default=(0, 0))[0], max(step_parameters(unit) for unit in units)
    room = sum(quantum * steps for quantum, steps in movable if quantum == finest)
    assert gap < coarsest + 1
    if room >= coarsest:
        assert gap < finest + 1


def check_infeasible(units, sparsity, bounds):
    def kept(retention, rounding):
        return sum(
            max(1, rounding(retention * unit.groups / unit.multiple)) * step_parameters(unit) + unit.fixed_parameters
            for unit in units
        )

    target = (1 - sparsity) * block_parameters(units)
    least, most = kept(bounds[0] - 1e-6, math.ceil), kept(bounds[1] + 1e-6, math.floor)
    assert target < least + max(step_parameters(unit) for unit in units) * len(units) * 1e-3 + 1 or target > most


# Query heads, KV groups and a width in one model: of 2,048, with 32 query heads and 8 KV heads of 64.
MIXED = [
    unit
    for layer in range(16)
    for unit in (
        Unit(layer, "kv_group", 32, 2 * 64 * 2048) if layer < 12 else Unit(layer, "kv_group", 8, 10 * 64 * 2048),
        Unit(layer, "channel", 8192, 3 * 2048, multiple=256),
    )
]
COARSER = [replace(unit, multiple=32 if unit.kind == "ffn" else 1) for unit in SMOLLM2]


@pytest.mark.parametrize("units, spread", [(SMOLLM2, 1), (COARSER, 32), (MIXED, 256)])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("precision", [None, 0.01])
def test_uniform_sizes_differ_by_at_most_one_step(units, spread, sparsity, precision):
    policy = uniform(sparsity_budget(units, sparsity, 0.2, precision=precision))
    widths = [size for unit, size in zip(policy.units, policy.sizes) if unit.kind == "ffn"]
    assert max(widths) - min(widths) <= spread
    heads = {}
    for unit, size in zip(policy.units, policy.sizes):
        if unit.kind == "attention":
            heads.setdefault(unit.groups, []).append(size)
    assert all(max(sizes) - min(sizes) <= 1 for sizes in heads.values())
    if len(set(widths)) > 1:
        # Not all of the wider ones are at one end.
        assert max(widths) in widths[: len(widths) // 2] and max(widths) in widths[len(widths) // 2 :]


def test_uniform_rounds_attention_up():
    policy = uniform(sparsity_budget(SMOLLM2, 0.2, 0.2))
    assert {size for unit, size in zip(policy.units, policy.sizes) if unit.kind == "attention"} == {3}

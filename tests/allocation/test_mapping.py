import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optimum_ffp.allocation.budget import Budget
from optimum_ffp.allocation.mapping import find_mapping, retention_scores, uniform
from optimum_ffp.allocation.policy import Unit, block_parameters
from optimum_ffp.errors import FFPError


greedy, water_filling = find_mapping("greedy"), find_mapping("water-filling")


def transformer(layers: int, groups: int, group_parameters: int, channels: int, channel_parameters: int) -> list[Unit]:
    units = []
    for layer in range(layers):
        units.append(Unit(layer, "attention", groups, group_parameters, fixed_parameters=7))
        units.append(Unit(layer, "ffn", channels, channel_parameters))
    return units


SMOLLM = transformer(30, 3, 294912, 1536, 1728)

units_strategy = st.lists(
    st.builds(
        Unit,
        layer=st.integers(0, 50),
        kind=st.sampled_from(["attention", "ffn"]),
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
    mapping=st.sampled_from([greedy, water_filling, uniform]),
)
def test_budget_holds_for_any_input(units, data, sparsity, bounds, precision, mapping):
    scores = np.array(data.draw(st.lists(st.floats(-50, 50), min_size=len(units), max_size=len(units))))
    try:
        budget = Budget(units, sparsity, *bounds, precision)
    except FFPError as error:
        # Refused only for a reason: the bounds leave no size, or the target is out of their reach.
        if "can't be met" in str(error):
            check_infeasible(units, sparsity, bounds)
        return
    policy = mapping(scores, budget)

    target = (1 - Fraction(str(sparsity))) * block_parameters(units)
    gap = float(target - int(policy.kept_parameters))
    assert gap >= 0
    sizes = np.array(policy.sizes)
    assert (sizes >= budget.smallest).all() and (sizes <= budget.largest).all()
    assert (sizes % budget.multiples == 0).all()
    finest, coarsest = budget.quanta.min(), budget.quanta.max()
    room = ((budget.largest - budget.smallest) * budget.group_parameters)[budget.quanta == finest].sum()
    assert gap < coarsest + 1
    if room >= coarsest:
        assert gap < finest + 1


def check_infeasible(units, sparsity, bounds):
    def kept(retention, rounding):
        return sum(
            max(1, rounding(retention * unit.groups / unit.multiple)) * unit.quantum + unit.fixed_parameters
            for unit in units
        )

    target = (1 - sparsity) * block_parameters(units)
    least, most = kept(bounds[0] - 1e-6, math.ceil), kept(bounds[1] + 1e-6, math.floor)
    assert target < least + max(unit.quantum for unit in units) * len(units) * 1e-3 + 1 or target > most


@pytest.mark.parametrize("mapping", [greedy, water_filling, uniform])
@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.5])
def test_real_shape_is_within_one_channel_of_the_target(mapping, sparsity):
    for seed in range(20):
        policy = mapping(np.random.default_rng(seed).normal(size=60), Budget(SMOLLM, sparsity, 0.2))
        gap = (1 - sparsity) * block_parameters(SMOLLM) - policy.kept_parameters
        assert 0 <= gap < 1728


def test_infeasible_sparsity_names_the_feasible_range():
    with pytest.raises(FFPError, match=r"sparsity 0.9 can't be met: with min_retention 0.2 at most 0.7\d+ of"):
        Budget(SMOLLM, 0.9, 0.2)
    with pytest.raises(FFPError, match=r"with max_retention 0.5 at least 0.5\d* of the block parameters are removed"):
        Budget(SMOLLM, 0.2, 0.2, 0.5)


def test_the_sparsity_that_an_error_suggests_can_be_met():
    units = [Unit(0, "ffn", 1000, 1)]
    # In binary 1 - 0.775 is a little less than 0.225.
    assert Budget(units, 0.775, 0.225).allowed == 225
    for sparsity, bounds in ((0.9, (1 / 3, 1)), (0.66604, (0.334, 1)), (0.1, (0.2, 2 / 3)), (0.7750001, (0.225, 1))):
        with pytest.raises(FFPError, match=f"sparsity {sparsity} can't be met") as caught:
            Budget(units, sparsity, *bounds)
        suggested = float(re.search(r"at (?:most|least) (\S+) of", str(caught.value))[1])
        assert suggested != sparsity and Budget(units, suggested, *bounds).allowed > 0


def test_width_that_the_multiple_does_not_divide_is_refused():
    with pytest.raises(FFPError, match="layer 3 ffn has 100 groups, which 32 does not divide"):
        Budget([Unit(3, "ffn", 100, 10, multiple=32)], 0.2)


def test_greedy_is_all_or_nothing_in_the_order_of_the_scores():
    units = [Unit(layer, "ffn", 100, 10) for layer in range(4)]
    policy = greedy(np.array([0.3, -1.0, 2.0, 0.1]), Budget(units, 0.5, 0.2))
    # 200 groups stay: 20 everywhere, then 80 to the first, and the last 40 to the second in order.
    assert policy.sizes == (60, 20, 100, 20)


def test_rates_are_rounded_to_the_grid_but_for_the_corrected_unit():
    units = [Unit(layer, "ffn", 1000, 10) for layer in range(5)]
    policy = water_filling(np.array([0.37, 0.12, -0.4, 0.05, 0.21]), Budget(units, 0.3, 0.2, precision=0.01))
    assert sum(size % 10 != 0 for size in policy.sizes) <= 1


@given(st.lists(st.floats(-3, 3), min_size=60, max_size=60), st.floats(0.05, 0.5))
def test_water_filling_keeps_differences_between_units_inside_the_bounds(scores, sparsity):
    budget = Budget(SMOLLM, sparsity, 0.2)
    policy = water_filling(np.array(scores), budget)
    squashed, _ = retention_scores(np.array(scores), budget)
    ffns = [
        (rate, score)
        for unit, rate, score in zip(policy.units, policy.retentions, squashed)
        if unit.kind == "ffn" and 0.21 < rate < 0.99
    ]
    assume(len(ffns) > 1)
    levels = [rate - score for rate, score in ffns]
    # One unit takes the rounding of all 30: at most half a channel of each.
    assert max(levels) - min(levels) < 17 / 1536


def test_uniform_leaves_coarse_attention_rounded_up():
    policy = uniform(np.zeros(60), Budget(SMOLLM, 0.2, 0.2))
    sizes = {unit.kind: set() for unit in policy.units}
    for unit, size in zip(policy.units, policy.sizes):
        sizes[unit.kind].add(size)
    assert sizes["attention"] == {3}
    assert max(sizes["ffn"]) - min(sizes["ffn"]) <= 30


def test_scores_beyond_the_reach_of_tanh_keep_their_order():
    units = [Unit(layer, "ffn", 100, 10) for layer in range(3)]
    policy = greedy(np.array([40.0, 41.0, 42.0]), Budget(units, 0.4, 0.2))
    assert policy.sizes[2] == 100 and policy.sizes[0] == 20

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.allocation.budget import Budget, Limit, sparsity_limit
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.config.choices import find_choice
from optimum_ffp.errors import FFPError
from tests.helpers import SMOLLM2, linear_costs, sparsity_budget


def test_sparsity_suggested_by_error_is_feasible():
    units = [Unit(0, "channel", 1000, 1)]
    # In binary 1 - 0.775 is a little less than 0.225.
    assert sparsity_budget(units, 0.775, 0.225).allowed == 225
    for sparsity, bounds in ((0.9, (1 / 3, 1)), (0.66604, (0.334, 1)), (0.1, (0.2, 2 / 3)), (0.7750001, (0.225, 1))):
        with pytest.raises(FFPError, match="sparsity") as caught:
            sparsity_budget(units, sparsity, *bounds)
        suggested = float(re.search(r"(?:maximum is|has) ([\d.]+)", str(caught.value))[1])
        assert suggested != sparsity and sparsity_budget(units, suggested, *bounds).allowed > 0


def test_width_not_divisible_by_multiple_is_rejected():
    with pytest.raises(FFPError, match="32"):
        sparsity_budget([Unit(3, "channel", 100, 10, multiple=32)], 0.2)


@given(
    units=st.lists(
        st.builds(
            Unit,
            layer=st.integers(0, 50),
            group=st.sampled_from(["kv_group", "channel"]),
            groups=st.integers(1, 10).map(lambda steps: steps * 4),
            group_parameters=st.integers(1, 500),
            multiple=st.sampled_from([1, 2, 4]),
        ),
        min_size=1,
        max_size=6,
    ),
    shares=st.lists(st.floats(0.1, 1.2), min_size=1, max_size=3),
    least=st.floats(0, 0.5),
    data=st.data(),
)
def test_all_limits_hold_and_no_unit_can_grow(units, shares, least, data):
    count, limits = len(units), []
    for index, share in enumerate(shares):
        prices = st.lists(st.integers(0, 300), min_size=count, max_size=count).filter(any)
        costs = [data.draw(prices) for _ in range(2)]
        tables = linear_costs(units, *costs)
        if data.draw(st.booleans()):
            # Seconds rise by steps, of any height and with flat parts.
            steps = np.append(1, np.random.default_rng(index).exponential(size=39) // 1)
            tables = [np.append(0, np.cumsum(slope * steps[: unit.groups])) for slope, unit in zip(costs[0], units)]
        limits.append(Limit(f"cost {index}", share, int(share * sum(table[-1] for table in tables)), tables))
    try:
        budget = Budget(units, limits, least)
    except FFPError as error:
        smallest = [max(1, int(np.ceil(least * unit.groups / unit.multiple - 1e-9))) * unit.multiple for unit in units]
        met = all(limit.cost(smallest) <= limit.allowed for limit in limits)
        assert ("nothing to remove" if met else "can't be met") in str(error)
        return
    seed = data.draw(st.integers(0, 1000))
    decreases = [np.random.default_rng(seed + index).exponential(size=unit.groups) for index, unit in enumerate(units)]
    curves = CurveMapping([np.append(np.cumsum(one)[::-1], 0) for one in decreases])
    policy = curves(np.zeros(count), budget)
    slack = [limit.allowed - limit.cost(policy.sizes) for limit in limits]
    assert min(slack) >= 0
    for unit, size, sizes in zip(range(count), policy.sizes, budget.sizes):
        for larger in sizes[sizes > size][:1]:
            steps = [limit.costs[unit][larger] - limit.costs[unit][size] for limit in limits]
            assert any(step > spare for step, spare in zip(steps, slack))


@pytest.mark.parametrize("mapping", ["greedy", "water-filling"])
def test_greedy_and_water_filling_reject_several_limits(mapping):
    limits = [sparsity_limit(SMOLLM2, 0.2), sparsity_limit(SMOLLM2, 0.3)]
    with pytest.raises(FFPError, match="a single limit.* found sparsity and sparsity"):
        find_choice("mapping", mapping).map_scores(np.zeros(60), Budget(SMOLLM2, limits, 0.2))


@pytest.mark.parametrize("mapping", ["greedy", "water-filling"])
def test_units_without_cost_are_not_pruned(mapping):
    heads = [unit.kind == "attention" for unit in SMOLLM2]
    limit = Limit("kv_cache", 0.5, 45, linear_costs(SMOLLM2, heads, [0] * 60))
    policy = find_choice("mapping", mapping).map_scores(np.zeros(60), Budget(SMOLLM2, [limit], 0.2))
    assert sum(policy.sizes[::2]) == 45 and set(policy.sizes[1::2]) == {1536}


@pytest.mark.parametrize("progress", [0.25, 0.5, 1])
def test_relaxed_budget_is_that_of_lower_sparsity(progress):
    relaxed, expected = sparsity_budget(SMOLLM2, 0.4).relaxed(progress), sparsity_budget(SMOLLM2, 0.4 * progress)
    # Both are rounded down to whole parameters.
    assert relaxed.allowed == pytest.approx(expected.allowed, abs=1)

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.allocation.homogeneous import homogeneous_policies
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.errors import FFPError
from tests.helpers import sparsity_budget


@given(
    layers=st.integers(1, 6),
    heads=st.integers(1, 9),
    steps=st.integers(2, 40),
    multiple=st.sampled_from([1, 8]),
    sizes=st.tuples(st.integers(1, 5000), st.integers(1, 300), st.integers(0, 50)),
    sparsity=st.floats(0.01, 0.95),
    least=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_homogeneous_policies_equal_brute_force_search(layers, heads, steps, multiple, sizes, sparsity, least):
    of_head, of_channel, fixed = sizes
    units = [
        unit
        for layer in range(layers)
        for unit in (
            Unit(layer, "kv_group", heads, of_head, fixed),
            Unit(layer, "channel", steps * multiple, of_channel, multiple=multiple),
        )
    ]
    try:
        budget = sparsity_budget(units, sparsity, least)
    except FFPError:
        return
    policies = homogeneous_policies(budget)
    assert all(policy.sizes == policy.sizes[:2] * layers for policy in policies)
    # By trying every size, and FFNs of one step more than the model has.
    widths = range(max(1, math.ceil(least * steps - 1e-9)) * multiple, (steps + 1) * multiple + 1, multiple)
    expected, wider = {}, {}
    for size in range(max(1, math.ceil(least * heads - 1e-9)), heads + 1):
        kept = {width: layers * (size * of_head + fixed + width * of_channel) for width in widths}
        fitting = [width for width, parameters in kept.items() if parameters <= budget.allowed]
        if fitting:
            (wider if max(fitting) > steps * multiple else expected)[size] = max(fitting)
    if expected:
        assert {policy.sizes[0]: policy.sizes[1] for policy in policies} == expected
    else:
        assert [policy.sizes[:2] for policy in policies] == [(max(wider), steps * multiple)]


def test_homogeneous_policies_reject_mixed_attention_groups():
    units = [
        unit
        for layer, group in enumerate(("kv_group", "query_head"))
        for unit in (Unit(layer, group, 4, 100), Unit(layer, "channel", 64, 10))
    ]
    with pytest.raises(FFPError, match="kv-groups"):
        homogeneous_policies(sparsity_budget(units, 0.2))

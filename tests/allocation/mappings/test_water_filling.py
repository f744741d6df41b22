import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from optimum_ffp.allocation.mappings.water_filling import map_scores as water_filling
from optimum_ffp.allocation.mappings.water_filling import retention_scores
from optimum_ffp.allocation.policy import Unit
from tests.helpers import SMOLLM2, sparsity_budget


def test_rates_are_rounded_except_in_one_corrected_unit():
    units = [Unit(layer, "channel", 1000, 10) for layer in range(5)]
    policy = water_filling(np.array([0.37, 0.12, -0.4, 0.05, 0.21]), sparsity_budget(units, 0.3, 0.2, precision=0.01))
    assert sum(size % 10 != 0 for size in policy.sizes) <= 1


@given(st.lists(st.floats(-3, 3), min_size=60, max_size=60), st.floats(0.05, 0.5))
def test_retention_minus_score_is_equal_for_all_unbounded_units(scores, sparsity):
    budget = sparsity_budget(SMOLLM2, sparsity, 0.2)
    policy = water_filling(np.array(scores), budget)
    squashed = retention_scores(np.array(scores), budget)
    ffns = [
        (rate, score)
        for unit, rate, score in zip(policy.units, policy.retentions, squashed)
        if unit.kind == "ffn" and 0.21 < rate < 0.99
    ]
    assume(len(ffns) > 1)
    levels = [rate - score for rate, score in ffns]
    # One unit takes the rounding of all 30: at most half a channel of each.
    assert max(levels) - min(levels) < 17 / 1536

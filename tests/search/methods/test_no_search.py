import numpy as np

from optimum_ffp.allocation.mappings.curves import CurveMapping
from tests.helpers import sparsity_budget
from tests.search.landscape import CURVES, UNITS, run


def test_no_search_is_the_policy_of_equal_scores():
    result, landscape, _ = run("no-search")
    assert not landscape.calls
    assert result.policy == CurveMapping(CURVES)(np.zeros(6), sparsity_budget(UNITS, 0.3, 0.1))

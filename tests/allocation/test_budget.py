import re

import pytest

from optimum_ffp.allocation.budget import Budget
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.errors import FFPError
from tests.helpers import SMOLLM2


def test_infeasible_sparsity_names_the_feasible_range():
    with pytest.raises(FFPError, match=r"at most 0.7"):
        Budget(SMOLLM2, 0.9, 0.2)
    with pytest.raises(FFPError, match=r"at least 0.5"):
        Budget(SMOLLM2, 0.2, 0.2, 0.5)


def test_the_sparsity_that_an_error_suggests_can_be_met():
    units = [Unit(0, "ffn", 1000, 1)]
    # In binary 1 - 0.775 is a little less than 0.225.
    assert Budget(units, 0.775, 0.225).allowed == 225
    for sparsity, bounds in ((0.9, (1 / 3, 1)), (0.66604, (0.334, 1)), (0.1, (0.2, 2 / 3)), (0.7750001, (0.225, 1))):
        with pytest.raises(FFPError, match="sparsity") as caught:
            Budget(units, sparsity, *bounds)
        suggested = float(re.search(r"at (?:most|least) (\S+) of", str(caught.value))[1])
        assert suggested != sparsity and Budget(units, suggested, *bounds).allowed > 0


def test_width_that_the_multiple_does_not_divide_is_refused():
    with pytest.raises(FFPError, match="32"):
        Budget([Unit(3, "ffn", 100, 10, multiple=32)], 0.2)

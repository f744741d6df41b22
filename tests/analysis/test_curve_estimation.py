import numpy as np
import pytest

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.analysis.curve_estimation import LEAST_SLOPE, PROBE_RETENTION, _plausible, measure_slopes
from optimum_ffp.analysis.fisher import loss_curve
from optimum_ffp.errors import FFPError
from tests.helpers import make_sorted_model


@pytest.mark.slow
def test_scaled_curves_tell_what_pruning_one_unit_does_to_the_output(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    errors = [
        loss_curve(sorted_model.dense_output(index), ridge, None, unit.output.block)
        for index, (ridge, unit) in enumerate(zip(sorted_model.ridges, sorted_model.model_units))
    ]
    slopes = measure_slopes(sorted_model, windows, errors)
    dense = tiny_model(windows).logits.log_softmax(-1)
    for index, unit in enumerate(sorted_model.units):
        sizes = [other.groups for other in sorted_model.units]
        sizes[index] = round(PROBE_RETENTION * unit.groups)
        policy = PruningPolicy(sorted_model.units, tuple(sizes))
        with sorted_model.applied(policy, sorted_model.compensated(policy)) as model:
            pruned = model(windows).logits.log_softmax(-1)
        divergence = float((dense.exp() * (dense - pruned)).sum(-1).mean())
        assert slopes[index] * errors[index][sizes[index]] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        # A unit of one group keeps it.
        assert (divergence > 0) == (unit.groups > 1)


def test_unweighted_curve_is_the_error_in_the_metric_of_the_gram_matrix(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    ridge, unit = sorted_model.ridges[1], sorted_model.model_units[1]
    dense = sorted_model.dense_output(1)
    curve = loss_curve(dense, ridge, None, unit.output.block)
    factor, weight = ridge.factor.double(), dense.double()
    kept = unit.unit.groups // 2
    change = -weight.clone()
    change[:, :kept] += ridge.compensated(dense, kept).double()
    assert curve[kept] == pytest.approx(float((change @ factor).square().sum()), rel=1e-3)
    assert curve[-1] == 0 and (np.diff(curve) <= 1e-6 * curve[0]).all()


def test_slopes_that_can_not_be_are_replaced():
    kinds = np.array(["ffn"] * 4 + ["attention"] * 2)
    found = _plausible(np.array([2.0, 0.0, np.nan, 4.0, 1.0, np.inf]), kinds)
    # Dead channels alone were removed; a probe that overflowed is as bad as the worst.
    assert found.tolist() == [2.0, LEAST_SLOPE * 2.0, 4.0, 4.0, 1.0, 1.0]
    with pytest.raises(FFPError, match="is not finite when a third of any ffn unit is removed; choose dtype"):
        _plausible(np.array([np.nan] * 4 + [1.0, 2.0]), kinds)

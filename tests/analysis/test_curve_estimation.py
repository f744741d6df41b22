import numpy as np
import pytest

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.analysis.curve_estimation import PROBE_RETENTION, measure_slopes
from optimum_ffp.analysis.fisher import loss_curve
from tests.compression.test_sorted_model import make_nested


def test_scaled_curves_tell_what_pruning_one_unit_does_to_the_output(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    errors = [loss_curve(ridge, None, unit.output.block) for ridge, unit in zip(nested.ridges, nested.model_units)]
    slopes = measure_slopes(nested, windows, errors)
    dense = picomodel(windows).logits.log_softmax(-1)
    for index, unit in enumerate(nested.units):
        sizes = [other.items for other in nested.units]
        sizes[index] = round(PROBE_RETENTION * unit.items)
        policy = PruningPolicy(nested.units, tuple(sizes))
        with nested.applied(policy, nested.compensated(policy)) as model:
            pruned = model(windows).logits.log_softmax(-1)
        divergence = float((dense.exp() * (dense - pruned)).sum(-1).mean())
        assert slopes[index] * errors[index][sizes[index]] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        assert divergence > 0


def test_unweighted_curve_is_the_error_in_the_metric_of_the_gram_matrix(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    ridge, unit = nested.ridges[1], nested.model_units[1]
    curve = loss_curve(ridge, None, unit.output.block)
    factor, weight = ridge.factor.double(), ridge.weight.double()
    kept = unit.unit.items // 2
    change = -weight.clone()
    change[:, :kept] += ridge.compensated(kept).double()
    assert curve[kept] == pytest.approx(float((change @ factor).square().sum()), rel=1e-3)
    assert curve[-1] == 0 and (np.diff(curve) <= 1e-6 * curve[0]).all()

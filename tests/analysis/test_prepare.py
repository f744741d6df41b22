import pytest
import torch

from optimum_ffp.analysis.attention import find_unit_variants
from optimum_ffp.analysis.prepare import Preparation
from optimum_ffp.data import Windows
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.utils.profiling import StageMeter
from optimum_ffp.utils.resume import Journal
from tests.helpers import layerwise_of, make_tiny_model, plan_of, record_inputs, solve_ridge


# A prune that needs no loss curves, and one that needs no ridge regression either.
PLAIN = {"criterion": "wanda", "mapping": "greedy", "method": "uniform"}
PLAINEST = PLAIN | {"calibration": "none", "reward": "pruned", "first_tokens": 0}


@pytest.fixture
def prepared_with(windows):
    """What is prepared of a tiny llama with some options, and the meter of it."""

    def call(start_token=False, **options):
        layerwise, meter = layerwise_of(make_tiny_model()), StageMeter()
        plan = plan_of(layerwise.model, fisher_samples=2, **options)
        variants = find_unit_variants(layerwise.model, layerwise.family, plan, plan.attention)
        calibration = Windows(windows, "", "", start_token)
        return Preparation(layerwise, variants, plan, calibration, meter, Journal()).run(), meter

    return call


def test_groups_are_sorted_by_criterion(prepared_with, windows):
    model = make_tiny_model()
    unit = find_units(model, find_family(model.config))[1]
    inputs = record_inputs(model, unit.output.module, windows)
    # Wanda of a channel: the norm of what it reads, times the sum of its weights' sizes.
    importance = inputs.square().mean(0).sqrt() * unit.output.module.weight.abs().sum(0)
    prepared, _ = prepared_with(**PLAINEST)
    sorted_weight = prepared.sorted_model.model_units[1].output.module.weight
    assert torch.equal(sorted_weight, unit.output.module.weight[:, importance.argsort(descending=True)])


@pytest.mark.parametrize("start_token", [False, True])
def test_ridge_factors_include_first_tokens_without_start_token(prepared_with, windows, start_token):
    prepared, _ = prepared_with(start_token=start_token, first_tokens=4)
    unit, first = prepared.sorted_model.model_units[3], windows[:, ::4].reshape(-1, 1)
    passes = [windows] if start_token else [windows, first]
    rows = record_inputs(prepared.sorted_model.model, unit.output.module, *passes)
    gram = rows.T @ rows / len(rows)
    expected = solve_ridge(unit.output.module.weight.data, gram, 20)
    assert torch.allclose(prepared.sorted_model.compensated_output(3, 20), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, ["fisher", "statistics", "importance"]),
        (PLAIN, ["statistics", "importance"]),
        (PLAINEST, ["statistics", "importance"]),
    ],
    ids=["default", "no curves", "no factors"],
)
def test_only_required_statistics_are_measured(prepared_with, options, stages):
    prepared, meter = prepared_with(**options)
    assert list(meter.seconds) == stages
    assert (prepared.curves is not None) == (options.get("mapping") is None)
    assert bool(prepared.sorted_model.ridges) == (options != PLAINEST)

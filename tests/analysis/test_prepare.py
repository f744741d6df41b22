import numpy as np
import pytest
import torch

from optimum_ffp.analysis.attention import find_unit_variants
from optimum_ffp.analysis.prepare import prepare
from optimum_ffp.data import Windows
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.utils.profiling import StageMeter
from optimum_ffp.utils.resume import Journal
from tests.helpers import layerwise_of, make_tiny_model, plan_of, ridge_direct


# A prune that needs no loss curves, and one that needs no ridge regression either.
PLAIN = {"criterion": "wanda", "mapping": "greedy", "method": "uniform"}
PLAINEST = PLAIN | {"calibration": "none", "reward": "pruned", "first_tokens": 0}


@pytest.fixture
def prepared_with(windows):
    """What is prepared of a tiny llama with some options, and the meter of it."""

    def call(journal=None, start_token=False, **options):
        layerwise, meter = layerwise_of(make_tiny_model()), StageMeter()
        plan = plan_of(layerwise.model, fisher_samples=2, **options)
        variants = find_unit_variants(layerwise.model, layerwise.family, plan, plan.attention)
        calibration = Windows(windows, "", "", start_token)
        return prepare(layerwise, variants, plan, calibration, meter, journal or Journal()), meter

    return call


def test_groups_are_sorted_by_criterion(prepared_with, windows):
    model = make_tiny_model()
    unit = find_units(model, find_family(model.config))[1]
    seen = []
    with unit.output.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        model(windows)
    # Wanda of a channel: the norm of what it reads, times the sum of its weights' sizes.
    importance = seen[0].square().mean(0).sqrt() * unit.output.module.weight.abs().sum(0)
    prepared, _ = prepared_with(**PLAINEST)
    sorted_weight = prepared.sorted_model.model_units[1].output.module.weight
    assert torch.equal(sorted_weight, unit.output.module.weight[:, importance.argsort(descending=True)])


@pytest.mark.parametrize("start_token", [False, True])
def test_ridge_factors_include_first_tokens_without_start_token(
    prepared_with, windows, start_token
):
    prepared, _ = prepared_with(start_token=start_token, first_tokens=4)
    unit, seen = prepared.sorted_model.model_units[3], []
    with unit.output.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        prepared.sorted_model.model(windows)
        if not start_token:
            prepared.sorted_model.model(windows[:, ::4].reshape(-1, 1))
    rows = torch.cat(seen)
    gram = rows.T @ rows / len(rows)
    expected = ridge_direct(unit.output.module.weight.data, gram, 20)
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


def test_journaled_statistics_are_not_measured_again(prepared_with, tmp_path, monkeypatch):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    first, _ = prepared_with(journal)
    for name in ("collect_statistics", "collect_fisher"):
        monkeypatch.setattr(f"optimum_ffp.analysis.prepare.{name}", None)
    again, _ = prepared_with(journal)
    weights = first.sorted_model.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.sorted_model.model.state_dict().items())
    for one, other in zip(first.curves.curves, again.curves.curves):
        assert np.array_equal(one, other)

"""Times of attention and FFN by size, on a device whose times are known, and on this one."""

import json
import math

import numpy as np
import pytest
import torch

from optimum_ffp import FFPConfig, FFPError
from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.evaluation.block_costs import measure_costs, measure_speedup, read_costs
from optimum_ffp.modeling.families import decoder_layers, find_family, find_units
from optimum_ffp.modeling.limits import speedup_limit
from tests.helpers import DIVERSE_MODELS, make_deep_model, make_pruner


def seconds_of(model, prompt, new_tokens):
    """Seconds that rise with the sizes of each layer, by steps: those of the first tokens, and of the others."""
    blocks = [layer.named_parameters() for layer in decoder_layers(model)]
    blocks = [math.ceil(weight.numel() / 97) for block in blocks for _, weight in block if weight.ndim == 2]
    return prompt.numel() / 10 + sum(blocks), new_tokens * (sum(blocks) + model.config.vocab_size / 3)


@pytest.fixture
def synthetic_times(monkeypatch):
    monkeypatch.setattr("optimum_ffp.evaluation.latency.time_generation", seconds_of)


def variants_of(model):
    family = find_family(model.config)
    groups = family.attention_groups(model.config)
    return [tuple(unit.unit for unit in find_units(model, family, 1, group)) for group in groups]


@pytest.mark.parametrize("name", DIVERSE_MODELS)
def test_predicted_speedup_equals_measured_speedup_at_measured_sizes(synthetic_times, name):
    model = make_deep_model(name)
    table = measure_costs(model, "10+3x2")
    rng = np.random.default_rng(0)
    for units in variants_of(model):
        # The fourth layer has the type of the second, so that its attention may go.
        sizes = [int(unit.groups * rng.integers(1, 9) / 8 + 0.9) for unit in units]
        sizes[5] = sizes[6] = 0
        policy, dense = PruningPolicy(units, tuple(sizes)), PruningPolicy.dense(units)
        limit = speedup_limit(units, table, 1.5)
        assert limit.value(limit.cost(policy.sizes)) == pytest.approx(measure_speedup(model, policy, "10+3x2"))
        trimmed = speedup_limit(units, table, 1.5, dropped=model.config.vocab_size - 24)
        assert trimmed.value(trimmed.cost(policy.sizes)) == pytest.approx(measure_speedup(model, policy, "10+3x2", 24))
        assert trimmed.value(trimmed.allowed) == pytest.approx(1.5)
        assert trimmed.value(trimmed.cost(dense.sizes)) + trimmed.tokens == pytest.approx(1)
        assert limit.value(limit.cost(dense.sizes)) == 1 and limit.value(limit.allowed) == pytest.approx(1.5)


@pytest.mark.parametrize("name", [*DIVERSE_MODELS])
def test_measuring_block_costs_leaves_model_unchanged(name, windows):
    model = make_deep_model(name)
    before = model(windows).logits
    table = measure_costs(model, "6+2x2")
    assert torch.equal(model(windows).logits, before)
    assert table["dense"] > 0 and {row["unit"] for row in table["units"]} == {"attention", "ffn"}


def test_workload_beyond_max_positions_is_rejected(synthetic_times):
    model = make_deep_model("llama")
    with pytest.raises(FFPError, match="64 positions"):
        measure_costs(model, "60+5")


@pytest.mark.slow
def test_block_times_are_rescaled_by_whole_model_time(save_tiny_model, data_folder, monkeypatch):
    def seconds(model, *_):
        return sum(weight.numel() for layer in decoder_layers(model) for weight in layer.parameters()) + 5000, 0.0

    options = {"speedup": 1.2, "workload": "8+4", "method": "no-search", "calibration": "none"}
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    dense, _ = seconds(pruner.model)
    # The dense model happens to be slow while all others are measured.
    timer = "optimum_ffp.evaluation.latency.time_generation"
    monkeypatch.setattr(timer, lambda model, *_: (seconds(model)[0] + (seconds(model)[0] == dense) * dense / 20, 0.0))
    assert pruner.measured.block_costs["dense"] == pytest.approx(1.05 * dense)
    monkeypatch.setattr(timer, seconds)
    result = pruner.prune()
    (limit,) = result.search.budget
    assert limit["measured"] == pytest.approx(1.2, rel=0.02) and result.search.times["scale"] < 0.9


def test_incomplete_or_impossible_costs_are_rejected(tmp_path):
    row = {"unit": "ffn", "group": "channel", "layers": [0], "sizes": [0, 8], "seconds": [0.0, 0.5]}
    table, file = {"workload": "8+4", "dense": 1.0, "units": [row]}, tmp_path / "costs.json"
    wrong = [{"dense": 0}, {"dense": math.nan}, {"scale": math.nan}, {"workload": 8}, {"units": 5}, {"units": [{}]}]
    wrong += [{"units": [row | {"seconds": [0, seconds]}]} for seconds in (math.inf, math.nan, -1, "1", [])]
    for changes in ({}, *wrong):
        file.write_text(json.dumps(table | changes))
        for costs in (str(file), table | changes):
            if changes:
                with pytest.raises(FFPError, match="costs must have"):
                    read_costs(FFPConfig(costs=costs))
            else:
                assert read_costs(FFPConfig(costs=costs)) == table

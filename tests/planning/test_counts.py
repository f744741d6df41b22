"""Layers that are brought to the device, as a prune brings them."""

import pytest

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.engine import layerwise_model
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning.plan import make_plan
from tests.helpers import SETTINGS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "paper", "search_steps": 20},
        {"method": "random", "search_steps": 20},
        {"method": "no-search", "calibration": "ridge"},
        {"agent": "ppo", "search_steps": 30, "candidates": 7},
    ],
    ids=["default", "paper", "random", "no-search", "ppo"],
)
@pytest.mark.parametrize("room", [2**32, 2**12])
def test_layers_are_brought_as_often_as_planned(save_tiny_model, data_folder, tmp_path, monkeypatch, options, room):
    monkeypatch.setattr(layerwise_model, "OFFLOADED_BYTES", room)
    monkeypatch.setattr(layerwise_model, "OFFLOADED_SHARE", 0)
    config = FFPConfig(dataset=str(data_folder), **SETTINGS | options)
    pruner = FFPPruner.from_pretrained(save_tiny_model(), config, tmp_path / "work", device="cpu", offload="disk")
    layers = len(pruner.measured.layerwise.layers)
    plan = make_plan(pruner.model.config, pruner.config, options=LoadOptions("cpu", offload="disk"))
    before = pruner.measured.layerwise.weights.loads
    result = pruner.prune()
    assert options.get("agent") != "ppo" or result.cost.tokens["search"] <= plan.tokens["search"]
    found = pruner.measured.layerwise.weights.loads - before
    planned = sum(plan.brought_bytes.values()) // plan.layer_bytes
    assert plan.layer_bytes == sum(one.nbytes for one in pruner.model.model.layers.parameters())
    # A candidate that comes again is not evaluated again.
    assert planned - 0.6 * plan.walks["search"] <= found / layers <= planned, (found / layers, plan.walks)
    if options.get("method") == "no-search":
        assert found == planned * layers

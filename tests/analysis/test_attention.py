import json

import numpy as np
import pytest

from optimum_ffp import FFPConfig
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.analysis.attention import find_unit_variants, mean_losses
from optimum_ffp.analysis.prepare import Preparation
from optimum_ffp.data import Windows
from optimum_ffp.modeling.families import find_family
from optimum_ffp.utils.profiling import StageMeter
from optimum_ffp.utils.resume import Journal
from tests.helpers import layerwise_of, make_tiny_model, plan_of, prune_to_sizes


@pytest.mark.parametrize(
    ("name", "kv_heads", "options", "expected"),
    [
        ("llama", 4, {}, ["kv_group", "query_head"]),
        ("llama", 4, {"attention": "query-heads"}, ["query_head"]),
        ("llama", 4, {"attention": "kv-groups"}, ["kv_group"]),
        ("llama", 4, {"preset": "paper"}, ["kv_group"]),
        ("llama", 4, {"mapping": "greedy", "method": "uniform"}, ["kv_group"]),
        # A model with a single variant always gets it.
        ("llama", 8, {"attention": "query-heads"}, ["kv_group"]),
        ("llama", 1, {"attention": "kv-groups"}, ["query_head"]),
        ("gemma3", 1, {"preset": "paper"}, ["query_head"]),
        ("gpt2", None, {"attention": "query-heads"}, ["kv_group"]),
        ("gpt-neox", None, {}, ["kv_group"]),
    ],
)
def test_attention_groups_follow_option_and_model(name, kv_heads, options, expected):
    model = make_tiny_model(name, **{"num_key_value_heads": kv_heads} if kv_heads else {})
    plan = plan_of(model, **options)
    variants = find_unit_variants(model, find_family(model.config), plan, plan.attention)
    assert [variant[0].unit.group for variant in variants] == expected
    # All variants have the same parameters.
    assert len({sum(unit.unit.parameters for unit in variant) for variant in variants}) == 1


def test_attention_groups_follow_given_policy(tmp_path):
    model = make_tiny_model(num_key_value_heads=2)
    _, policy = prune_to_sizes(model, groups=("kv_group", "query_head"))
    (tmp_path / "policy.json").write_text(json.dumps([row.to_dict() for row in policy.rows]))
    config = FFPConfig(policy=str(tmp_path / "policy.json"), multiple_of=1, attention="query-heads")
    (units,) = find_unit_variants(model, find_family(model.config), config, config.attention)
    assert tuple(unit.unit for unit in units) == policy.units
    assert {"kv_group", "query_head"} < {unit.group for unit in policy.units}


def test_curves_are_compared_at_equally_many_removed_parameters():
    # Each loses up to 60 parameters; lines of 1 and 2 nats to there, beyond which the first goes on steeply.
    units = [Unit(0, "kv_group", 4, 30), Unit(0, "query_head", 3, 30)]
    curves = [np.array([99.0, 50.0, 1.0, 0.5, 0.0]), np.array([99.0, 2.0, 1.0, 0.0])]
    assert mean_losses(units, curves) == pytest.approx([0.5, 1.0])
    # A bump above the lower hull counts for nothing.
    assert mean_losses(units[1:], [np.array([99.0, 2.0, 1.8, 0.0])]) == pytest.approx([1.0])
    # Half of a step of the other one.
    units = [Unit(0, "kv_group", 2, 100), Unit(0, "query_head", 2, 50)]
    assert mean_losses(units, [np.array([9.0, 4.0, 0.0]), np.array([9.0, 1.5, 0.0])]) == pytest.approx([1.0, 0.75])


def test_every_layer_prunes_attention_group_with_lower_loss(windows):
    model = make_tiny_model(num_key_value_heads=2)
    heads, kv_heads, head_dim = find_family(model.config).heads(model.config)
    columns = model.model.layers[0].self_attn.o_proj.weight.data.view(-1, kv_heads, heads // kv_heads, head_dim)
    # Nothing reads the second KV head of layer 0, nor half of the query heads of each KV head of layer 1.
    columns[:, 1] = 0
    columns = model.model.layers[1].self_attn.o_proj.weight.data.view(-1, kv_heads, heads // kv_heads, head_dim)
    columns[:, 0, 1:3] = columns[:, 1, 2:] = 0
    layerwise, plan = layerwise_of(model), plan_of(model, fisher_samples=2)
    variants = find_unit_variants(model, layerwise.family, plan, plan.attention)
    prepared = Preparation(layerwise, variants, plan, Windows(windows, "", ""), StageMeter(), Journal()).run()
    units, curves = prepared.sorted_model.units, prepared.curves.curves
    assert [unit.group for unit in units if unit.layer < 2] == ["kv_group", "channel", "query_head", "channel"]
    assert [len(curve) - 1 for curve in curves] == [unit.groups for unit in units]
    assert curves[0][1] == pytest.approx(0, abs=1e-6 * curves[0][0])
    assert curves[2][2] == pytest.approx(0, abs=1e-6 * curves[2][0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attention": "query-heads"}, True),
        ({"attention": "query-heads", "preset": "paper"}, True),
        ({"attention": "query-heads", "method": "homogeneous"}, True),
        ({"method": "homogeneous"}, False),
        ({}, False),
        ({"attention": "kv-groups"}, False),
    ],
)
def test_unavailable_attention_group_is_reported_once(options, told, caplog):
    model = make_tiny_model(num_key_value_heads=8)
    model.config._name_or_path = f"a model for {options}"
    for _ in range(2):
        plan_of(model, **options)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == told and all("query-heads" in line and str(options) in line for line in lines)

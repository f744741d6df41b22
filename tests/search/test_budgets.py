"""Budgets of a prune against what a model has: parameters, files, and caches."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, StaticCache

from optimum_ffp import FFPConfig, FFPError
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.compression.sorted_model import SortedModel
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.search.runner import find_budget
from tests.helpers import layerwise_of, make_tiny_model, plan_of


def cache_bytes(model: PreTrainedModel, context: int, sequences: int = 1) -> int:
    """The bytes of a cache that holds a context, as transformers allocates it."""
    cache = StaticCache(model.config, max_cache_len=context)
    with torch.no_grad():
        model(torch.zeros(sequences, 2, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = [
        [layer.conv_states[0]] if hasattr(layer, "conv_states") else [layer.keys, layer.values]
        for layer in cache.layers
    ]
    return sum(tensor.nbytes for layer in held for tensor in layer)


def prune(model, config):
    """Prune a model by curves of the same shape, without measuring it, and return it with the budget."""
    units = find_units(model, find_family(model.config))
    sorted_model = SortedModel(layerwise_of(model), units, [torch.arange(unit.unit.groups) for unit in units])
    curves = CurveMapping([np.linspace(1, 0, unit.groups + 1) ** 2 for unit in sorted_model.units])
    budget = find_budget(model, sorted_model.units, config, config.limits, config.costs)
    return sorted_model.slice(curves(np.zeros(len(units)), budget)), budget


# Models with tied embeddings, fused projections, biases, sliding windows, or layers without attention.
MODELS = ["llama", "gpt2", "phi3", "opt", "gemma3", "gpt-neox", "lfm2"]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    name=st.sampled_from(MODELS),
    shares=st.tuples(*[st.one_of(st.none(), st.floats(0.4, 0.95))] * 3).filter(any),
    context=st.integers(4, 64),
    sequences=st.integers(1, 3),
)
def test_pruned_model_meets_params_memory_and_kv_cache_budgets(name, shares, context, sequences):
    model = make_tiny_model(name)

    def values(model):
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            (file,) = Path(folder).glob("*.safetensors")
            with open(file, "rb") as weights:
                header = 8 + int.from_bytes(weights.read(8), "little")
            weights = file.stat().st_size - header
        keys = cache_bytes(model, context, sequences)
        return {"params": model.num_parameters(), "memory": weights + keys, "kv_cache": keys}

    dense = values(model)
    asked = {name: share * dense[name] for name, share in zip(dense, shares) if share}
    config = {name: shares[2] if name == "kv_cache" else int(value) for name, value in asked.items()}
    try:
        pruned, budget = prune(model, FFPConfig(**config, context=context, sequences=sequences))
    except FFPError as error:
        assert "can't be met" in str(error)
        return
    reached = values(pruned)
    missed = [value - reached[name] for name, value in asked.items()]
    assert min(missed) >= 0
    assert any(spare < step for spare, step in zip(missed, budget.quanta.max(1) + 1))


# Seconds of a tiny llama, in steps of heads, and of widths that are multiples of 12 or nearly so.
TIMES = {"attention": ("kv_group", [0, 1, 2, 3, 4], [0, 0.01, 0.06, 0.06, 0.09])}
TIMES |= {"ffn": ("channel", [0, 12, 13, 24, 25, 36, 37, 48], [0, 0.02, 0.05, 0.05, 0.1, 0.1, 0.12, 0.16])}
COSTS = {"workload": "8+4", "dense": 1.0}
COSTS["units"] = [
    {"unit": unit, "group": group, "layers": [0, 1, 2], "sizes": sizes, "seconds": seconds}
    for unit, (group, sizes, seconds) in TIMES.items()
]


@settings(max_examples=30, deadline=None)
@given(speedup=st.floats(1.05, 2))
def test_speedup_is_reached_with_stepwise_times(speedup):
    pruned, budget = prune(make_tiny_model("llama"), FFPConfig(speedup=speedup, costs=COSTS))
    widths = [
        size
        for layer in pruned.model.layers
        for size in (layer.self_attn.k_proj.out_features // 4, layer.mlp.down_proj.in_features)
    ]
    tables = [np.interp(range(sizes[-1] + 1), sizes, seconds) for _, sizes, seconds in TIMES.values()] * 3
    saved = sum(table[-1] - table[size] for table, size in zip(tables, widths))
    assert 1 / (1 - saved) >= speedup
    # No unit can grow by a step.
    spare = saved - (1 - 1 / speedup)
    rises = [table[size + 1] - table[size] for table, size in zip(tables, widths) if size + 1 < len(table)]
    assert all(rise > spare for rise in rises)
    assert budget.limits[0].value(budget.costs_of(widths)[0]) == pytest.approx(1 / (1 - saved))


def test_infeasible_budgets_name_reachable_value():
    model = make_tiny_model("llama")
    for options, message in (
        ({"params": "10k"}, "params 10k can't be met: with min_retention 0.2 the minimum is 13.6k"),
        ({"params": "1M"}, "params 1M leaves nothing to remove: the model has 31.456k already"),
        ({"memory": "100KiB"}, "memory 100KiB can't be met"),
        ({"kv_cache": 0.9, "params": "10k"}, "params 10k can't be met"),
        ({"speedup": 9, "costs": COSTS}, "speedup 9 can't be met: with min_retention 0.2 the maximum is 3.0303"),
        ({"kv_cache": 0.1}, "kv_cache 0.1 can't be met: with min_retention 0.2 the minimum is 0.25"),
    ):
        with pytest.raises(FFPError, match=message):
            prune(model, FFPConfig(**options))


def test_mismatched_block_costs_are_rejected():
    with pytest.raises(FFPError, match="measured on another model"):
        prune(make_tiny_model("gpt2"), FFPConfig(speedup=1.2, costs=COSTS))
    with pytest.raises(FFPError, match="measured on workload 8.4, found 8.0"):
        plan_of(speedup=1.2, costs=COSTS, workload="8+0")
    with pytest.raises(FFPError, match="speedup needs mapping 'curves'"):
        FFPConfig(speedup=1.2, mapping="greedy", agent="ppo")


@pytest.mark.parametrize("name, changes", [("olmo2", {}), ("llama", {"num_key_value_heads": 1})])
def test_kv_cache_budget_is_rejected_if_cache_cannot_shrink(name, changes):
    model = make_tiny_model(name, **changes)
    with pytest.raises(FFPError, match="can't shrink: its"):
        prune(model, FFPConfig(kv_cache=0.5))
    # Its weights can.
    dense = 4 * model.num_parameters() + cache_bytes(model, 16)
    pruned, _ = prune(model, FFPConfig(memory=int(0.8 * dense), context=16))
    assert 4 * pruned.num_parameters() + cache_bytes(pruned, 16) <= 0.8 * dense


def test_layer_removal_is_rejected_with_layer_scaled_attention():
    model = make_tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    prune(model, FFPConfig(sparsity=0.3))
    with pytest.raises(FFPError, match="depth none"):
        prune(model, FFPConfig(sparsity=0.3, depth="layers"))


def test_percentage_is_that_of_dense_model():
    model = make_tiny_model("llama")
    sizes = {"params": model.num_parameters(), "memory": 4 * model.num_parameters() + cache_bytes(model, 64, 2)}
    for name, dense in sizes.items():
        _, budget = prune(model, FFPConfig(**{name: "70%"}, context=64, sequences=2))
        assert budget.limits[0].asked == dense * 7 // 10

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
from tests.helpers import layerwise_of, make_tiny_model


def cache_bytes(model: PreTrainedModel, context: int, sequences: int = 1) -> int:
    """The bytes of a cache that holds a context, as transformers allocates it."""
    cache = StaticCache(model.config, max_cache_len=context)
    with torch.no_grad():
        model(torch.zeros(sequences, 2, dtype=torch.long), past_key_values=cache, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def prune(model, config):
    """Prune a model by curves of the same shape, without measuring it, and return it with the budget."""
    units = find_units(model, find_family(model.config))
    sorted_model = SortedModel(layerwise_of(model), units, [torch.arange(unit.unit.groups) for unit in units])
    curves = CurveMapping([np.linspace(1, 0, unit.groups + 1) ** 2 for unit in sorted_model.units])
    budget = find_budget(model, sorted_model.units, config)
    return sorted_model.materialize(curves(np.zeros(len(units)), budget)), budget


# Models with tied embeddings, fused projections, biases, or sliding windows.
KINDS = ["llama", "gpt2", "phi3", "opt", "gemma3", "gpt-neox"]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    name=st.sampled_from(KINDS),
    shares=st.tuples(*[st.one_of(st.none(), st.floats(0.4, 0.95))] * 3).filter(any),
    context=st.integers(4, 64),
    sequences=st.integers(1, 3),
)
def test_a_pruned_model_has_what_was_asked_for(name, shares, context, sequences):
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


def test_what_cannot_be_reached_is_said():
    model = make_tiny_model("llama")
    for options, message in (
        ({"params": "10k"}, "params 10k can't be met: with min_retention 0.2 it is at least 13.6k"),
        ({"params": "1M"}, "params 1M leaves nothing to remove: it is 31.456k already"),
        ({"memory": "100KiB"}, "memory 100KiB can't be met"),
        ({"kv_cache": 0.9, "params": "10k"}, "params 10k can't be met"),
        ({"kv_cache": 0.1}, "kv_cache 0.1 can't be met: with min_retention 0.2 it is at least 0.25"),
    ):
        with pytest.raises(FFPError, match=message):
            prune(model, FFPConfig(**options))


@pytest.mark.parametrize("name, changes", [("olmo2", {}), ("llama", {"num_key_value_heads": 1})])
def test_a_cache_that_cannot_shrink_is_refused(name, changes):
    model = make_tiny_model(name, **changes)
    with pytest.raises(FFPError, match="can't shrink: its"):
        prune(model, FFPConfig(kv_cache=0.5))
    # Its weights can.
    dense = 4 * model.num_parameters() + cache_bytes(model, 16)
    pruned, _ = prune(model, FFPConfig(memory=int(0.8 * dense), context=16))
    assert 4 * pruned.num_parameters() + cache_bytes(pruned, 16) <= 0.8 * dense

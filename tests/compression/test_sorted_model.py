"""Sliced equals masked: the views, the materialised model and the reloaded checkpoint against zeroed columns."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_ffp.allocation.mapping import Budget, greedy
from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.analysis.gram import collect_statistics
from optimum_ffp.analysis.importance import order_items
from optimum_ffp.compression.ridge import PrefixRidge
from optimum_ffp.compression.sorted_model import NestedModel
from optimum_ffp.modeling import FFPModelForCausalLM
from optimum_ffp.modeling.families import find_units, get_family


def make_nested(model: PreTrainedModel, windows: torch.Tensor) -> tuple[NestedModel, list[torch.Tensor]]:
    family = get_family(model.config.model_type)
    units = find_units(model, family)
    statistics = collect_statistics(model, units, windows)
    orders = [
        order_items("wanda", unit.output.module.weight, found, unit.output.block)
        for unit, found in zip(units, statistics)
    ]
    nested = NestedModel(model, units, orders, family)
    nested.ridges = [
        PrefixRidge(unit.output.module.weight.data, found.permuted(order, unit.output.block).gram)
        for unit, found, order in zip(units, statistics, orders)
    ]
    return nested, orders


def masked(model: PreTrainedModel, orders: list[torch.Tensor], policy: PruningPolicy) -> PreTrainedModel:
    """The dense model with what the policy removes zeroed at the input of every output projection."""
    model = copy.deepcopy(model)
    units = find_units(model, get_family(model.config.model_type))
    for unit, order, size in zip(units, orders, policy.sizes):
        weight = unit.output.module.weight.data
        for item in order[size:].tolist():
            weight[:, item * unit.output.block : (item + 1) * unit.output.block] = 0
    return model


def agree(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the same but for float32's rounding, of which large logits have more."""
    return bool((logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1))


def random_policy(nested: NestedModel, seed: int) -> PruningPolicy:
    scores = np.random.default_rng(seed).normal(size=len(nested.units))
    return greedy(scores, Budget(nested.units, 0.4, 0.1))


def test_sorting_leaves_the_function_as_it_was(picomodel, windows):
    before = picomodel(windows).logits
    nested, orders = make_nested(picomodel, windows)
    assert any((order != torch.arange(len(order))).any() for order in orders)
    assert (nested.model(windows).logits - before).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_sliced_equals_masked_before_and_after_save(picomodel, windows, tmp_path, seed):
    dense = copy.deepcopy(picomodel)
    nested, orders = make_nested(picomodel, windows)
    policy = random_policy(nested, seed)
    expected = masked(dense, orders, policy)(windows).logits

    with nested.applied(policy) as model:
        assert agree(model(windows).logits, expected)
    sliced = nested.materialise(policy)
    assert agree(sliced(windows).logits, expected)
    removed = dense.num_parameters() - sliced.num_parameters()
    blocks = sum(unit.parameters for unit in nested.units)
    assert removed == blocks - policy.kept_parameters

    sliced.save_pretrained(tmp_path)
    for loaded in (
        FFPModelForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(loaded(windows).logits, sliced(windows).logits)


def test_full_retention_is_the_identity(picomodel, windows):
    before = picomodel(windows).logits
    nested, _ = make_nested(picomodel, windows)
    dense = PruningPolicy.dense(nested.units)
    for outputs in (None, nested.compensated(dense)):
        assert (nested.materialise(dense, outputs)(windows).logits - before).abs().max() < 1e-4


def test_a_context_leaves_the_dense_model_behind(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    before = nested.model(windows).logits
    policy = random_policy(nested, 0)
    with pytest.raises(RuntimeError), nested.applied(policy, nested.compensated(policy)):
        raise RuntimeError
    assert torch.equal(nested.model(windows).logits, before)


def test_candidates_run_on_views(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    storage = {id(unit): unit.output.module.weight.data_ptr() for unit in nested.model_units}
    with nested.applied(random_policy(nested, 0)):
        for unit in nested.model_units:
            assert unit.output.module.weight.data_ptr() == storage[id(unit)]


def test_compensation_brings_outputs_closer(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    unit = nested.model_units[1]
    seen = []
    with unit.output.module.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        nested.model(windows)
        # Only this unit is pruned, so that its input is that of the dense model.
        sizes = [other.unit.items for other in nested.model_units]
        sizes[1] = 20
        one_pruned = PruningPolicy(nested.units, tuple(sizes))
        for outputs in (None, nested.compensated(one_pruned)):
            with nested.applied(one_pruned, outputs) as model:
                model(windows)
    plain, repaired = (seen[1] - seen[0]).norm(), (seen[2] - seen[0]).norm()
    assert repaired < 0.95 * plain


def test_generation_with_a_cache_whose_width_differs_by_layer(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    sliced = nested.materialise(random_policy(nested, 5))
    prompt = windows[:2, :5]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    cached = sliced.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, sliced.generate(prompt, use_cache=False, **options))

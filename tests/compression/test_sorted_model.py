"""Sliced equals masked: the views, the materialised model and the reloaded checkpoint against zeroed columns."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.modeling import FFPModelForCausalLM
from optimum_ffp.modeling.families import find_units, get_family
from tests.helpers import make_sorted_model, random_policy


def masked(model: PreTrainedModel, orders: list[torch.Tensor], policy: PruningPolicy) -> PreTrainedModel:
    """The dense model with what the policy removes zeroed at the input of every output projection."""
    model = copy.deepcopy(model)
    units = find_units(model, get_family(model.config.model_type))
    for unit, order, size in zip(units, orders, policy.sizes):
        weight = unit.output.module.weight.data
        for group in order[size:].tolist():
            weight[:, group * unit.output.block : (group + 1) * unit.output.block] = 0
    return model


def agree(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the same but for float32's rounding, of which large logits have more."""
    return bool((logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1))


def test_sorting_leaves_the_function_as_it_was(tiny_model, windows):
    before = tiny_model(windows).logits
    sorted_model, orders = make_sorted_model(tiny_model, windows)
    assert any((order != torch.arange(len(order))).any() for order in orders)
    assert (sorted_model.model(windows).logits - before).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_sliced_equals_masked_before_and_after_save(tiny_model, windows, tmp_path, seed):
    dense = copy.deepcopy(tiny_model)
    sorted_model, orders = make_sorted_model(tiny_model, windows)
    policy = random_policy(sorted_model, seed)
    expected = masked(dense, orders, policy)(windows).logits

    with sorted_model.applied(policy) as model:
        assert agree(model(windows).logits, expected)
    sliced = sorted_model.materialise(policy)
    assert agree(sliced(windows).logits, expected)
    removed = dense.num_parameters() - sliced.num_parameters()
    blocks = sum(unit.parameters for unit in sorted_model.units)
    assert removed == blocks - policy.kept_parameters

    sliced.save_pretrained(tmp_path)
    for loaded in (
        FFPModelForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(loaded(windows).logits, sliced(windows).logits)


def test_full_retention_is_the_identity(tiny_model, windows):
    before = tiny_model(windows).logits
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    dense = PruningPolicy.dense(sorted_model.units)
    for outputs in (None, sorted_model.compensated(dense)):
        assert (sorted_model.materialise(dense, outputs)(windows).logits - before).abs().max() < 1e-4


def test_a_context_leaves_the_dense_model_behind(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    before = sorted_model.model(windows).logits
    policy = random_policy(sorted_model, 0)
    with pytest.raises(RuntimeError), sorted_model.applied(policy, sorted_model.compensated(policy)):
        raise RuntimeError
    assert torch.equal(sorted_model.model(windows).logits, before)


def test_candidates_run_on_views(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    storage = {id(unit): unit.output.module.weight.data_ptr() for unit in sorted_model.model_units}
    with sorted_model.applied(random_policy(sorted_model, 0)):
        for unit in sorted_model.model_units:
            assert unit.output.module.weight.data_ptr() == storage[id(unit)]


def test_compensation_brings_outputs_closer(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    unit = sorted_model.model_units[1]
    seen = []
    with unit.output.module.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        sorted_model.model(windows)
        # Only this unit is pruned, so that its input is that of the dense model.
        sizes = [other.unit.groups for other in sorted_model.model_units]
        sizes[1] = 20
        one_pruned = PruningPolicy(sorted_model.units, tuple(sizes))
        for outputs in (None, sorted_model.compensated(one_pruned)):
            with sorted_model.applied(one_pruned, outputs) as model:
                model(windows)
    plain, repaired = (seen[1] - seen[0]).norm(), (seen[2] - seen[0]).norm()
    assert repaired < 0.95 * plain


def test_generation_with_a_cache_whose_width_differs_by_layer(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    sliced = sorted_model.materialise(random_policy(sorted_model, 5))
    prompt = windows[:2, :5]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    cached = sliced.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, sliced.generate(prompt, use_cache=False, **options))

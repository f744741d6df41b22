"""Sliced equals masked: the views, the sliced model and the reloaded checkpoint against zeroed columns."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.evaluation import projection_parameters
from optimum_ffp.modeling import FFPModelForCausalLM
from optimum_ffp.modeling.auto import PER_LAYER_LISTS
from optimum_ffp.modeling.families import find_family, find_units, outer_matrices
from optimum_ffp.modeling.padding import weights_of
from tests.helpers import (
    EVERY_MODEL,
    GROUPINGS,
    apply_policy,
    make_deep_model,
    make_sorted_model,
    make_tiny_model,
    random_policy,
    record_inputs,
    solve_ridge,
    without_sublayers,
)


SLOW = pytest.mark.slow


def masked(model: PreTrainedModel, orders: list[torch.Tensor], policy: PruningPolicy) -> PreTrainedModel:
    """The dense model with what the policy removes zeroed at the input of every output projection."""
    model = copy.deepcopy(model)
    family = find_family(model.config)
    for unit, pruned, order, size in zip(find_units(model, family), policy.units, orders, policy.sizes):
        gone, block = order[size:], unit.output.block
        if pruned.group == "query_head":
            heads, kv_heads, block = family.heads(model.config)
            # Each column of the order has the query heads of one KV head.
            gone = gone.view(-1, kv_heads) + torch.arange(0, heads, heads // kv_heads)
        for group in gone.flatten().tolist():
            unit.output.module.weight.data[:, group * block : (group + 1) * block] = 0
        if not size and unit.output.module.bias is not None:
            unit.output.module.bias.data.zero_()
    return model


def logits_match(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the same but for float32's rounding, of which large logits have more."""
    return bool((logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_sliced_model_equals_masked_model_before_and_after_saving(name, windows, tmp_path):
    check_sliced_equals_masked(make_tiny_model(name), windows, tmp_path)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", ["llama", "phi3", pytest.param("gemma3", marks=SLOW)])
def test_sliced_model_equals_masked_model_with_query_heads(name, grouping, windows, tmp_path):
    sizes, groups = GROUPINGS[grouping]
    check_sliced_equals_masked(make_tiny_model(name, **sizes), windows, tmp_path, groups)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_sliced_model_equals_masked_model_without_sublayers(name, windows, tmp_path):
    model, dense = make_deep_model(name), make_tiny_model(name)
    check_sliced_equals_masked(model, windows, tmp_path, change=without_sublayers)
    config = AutoConfig.from_pretrained(tmp_path)
    assert [config.per_layer_config[layer].skip for layer in range(3)] == [[], ["mlp"], ["attention"]]
    # Of four layers, of which the last was like the second.
    for name in PER_LAYER_LISTS:
        if entries := getattr(dense.config, name, None):
            assert getattr(config, name) == [entries[layer] for layer in (0, 1, 1)]


def check_sliced_equals_masked(model, windows, folder, groups=(None,), change=lambda policy: policy):
    dense = copy.deepcopy(model)
    sorted_model, orders = make_sorted_model(model, windows, groups)
    assert any((order != torch.arange(len(order))).any() for order in orders if order.ndim == 1)
    assert logits_match(sorted_model.model(windows).logits, dense(windows).logits)
    policy = change(random_policy(sorted_model, 0))
    expected = masked(dense, orders, policy)(windows).logits

    with apply_policy(sorted_model, policy) as model:
        assert logits_match(model(windows).logits, expected)
    sliced = sorted_model.slice(policy)
    assert logits_match(sliced(windows).logits, expected)
    removed = dense.num_parameters() - sliced.num_parameters()
    blocks = sum(unit.parameters for unit in sorted_model.units) - policy.kept_parameters
    assert removed == blocks if min(policy.sizes) else removed > blocks
    assert blocks == projection_parameters(dense) - projection_parameters(sliced)
    # The width of the cache differs by layer.
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    tokens, uncached = (sliced.generate(windows[:2, :5], use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(tokens, uncached), "generation with a cache gives other tokens"

    sliced.save_pretrained(folder)
    for loaded in (
        FFPModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    ):
        assert torch.equal(loaded(windows).logits, sliced(windows).logits)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_compensation_of_query_heads_equals_direct_ridge_solution(grouping, windows):
    sizes, groups = GROUPINGS[grouping]
    model = make_tiny_model("qwen3", **sizes)
    heads, kv_heads, head_dim = find_family(model.config).heads(model.config)
    unit = find_units(model, find_family(model.config))[2]
    inputs, weight = record_inputs(model, unit.output.module, windows), unit.output.module.weight.data.clone()
    sorted_model, orders = make_sorted_model(model, windows, groups)
    order, size = orders[2].view(-1, kv_heads), 2
    assert sorted_model.units[2].group == "query_head" and len(order) == heads // kv_heads
    columns = torch.tensor(
        [
            (kv_head * heads // kv_heads + row) * head_dim + column
            for rows in order.tolist()
            for kv_head, row in enumerate(rows)
            for column in range(head_dim)
        ]
    )
    inputs, weight = inputs[:, columns], weight[:, columns]
    kept = size * kv_heads * head_dim
    expected = solve_ridge(weight, inputs.T @ inputs / len(inputs), kept)
    found = sorted_model.compensated_output(2, size)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    # Put into the model, it meets the inputs that it was solved for.
    policy = PruningPolicy(
        sorted_model.units, tuple(size if i == 2 else u.groups for i, u in enumerate(sorted_model.units))
    )
    outputs = []
    with (
        apply_policy(sorted_model, policy, dict([sorted_model.named_output(2, found)])) as pruned,
        unit.output.module.register_forward_hook(lambda module, _, output: outputs.append(output.flatten(0, -2))),
    ):
        pruned(windows)
    assert torch.allclose(outputs[0], inputs[:, :kept] @ found.T, rtol=1e-3, atol=1e-3)


def test_dense_policy_is_identity(tiny_model, windows):
    before = tiny_model(windows).logits
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    dense = PruningPolicy.dense(sorted_model.units)
    for outputs in (None, sorted_model.compensated(dense)):
        assert (sorted_model.slice(dense, outputs)(windows).logits - before).abs().max() < 1e-4


def test_dense_model_is_restored_after_error(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    before = sorted_model.model(windows).logits
    policy = random_policy(sorted_model, 0)
    with pytest.raises(RuntimeError), apply_policy(sorted_model, policy, sorted_model.compensated(policy)):
        raise RuntimeError
    assert torch.equal(sorted_model.model(windows).logits, before)


@torch.no_grad()
def test_replaced_parameters_are_restored_after_context(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    before, policy = sorted_model.model(windows).logits, random_policy(sorted_model, 0)
    with apply_policy(sorted_model, policy) as model:
        plain = model(windows).logits
        layers = sorted_model.family.layers
        names = [name for name, _ in model.named_parameters() if f"{layers}.1." in name]
        weights = {name: 1.1 * model.get_parameter(name).data for name in names}
    with apply_policy(sorted_model, policy, weights) as model:
        replaced = model(windows).logits
    assert (replaced - plain).abs().max() > 1e-3
    assert logits_match(sorted_model.slice(policy, weights)(windows).logits, replaced)
    assert torch.equal(sorted_model.model(windows).logits, before)


def test_weights_of_trained_model_reproduce_its_logits(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    policy = random_policy(sorted_model, 0)
    trained = sorted_model.slice(policy)
    outer = {id(matrix) for matrix in outer_matrices(trained)}
    for parameter in trained.parameters():
        if id(parameter) not in outer:
            parameter.data.mul_(1 + 0.1 * torch.randn_like(parameter))
    weights, expected = weights_of(trained, sorted_model.model, policy), trained(windows).logits
    assert torch.equal(sorted_model.slice(policy, weights)(windows).logits, expected)
    with apply_policy(sorted_model, policy, weights) as model:
        assert logits_match(model(windows).logits, expected)


def test_applied_policy_shares_memory_with_dense_weights(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    storage = {id(unit): unit.output.module.weight.data_ptr() for unit in sorted_model.model_units}
    with apply_policy(sorted_model, random_policy(sorted_model, 0)):
        for unit in sorted_model.model_units:
            assert unit.output.module.weight.data_ptr() == storage[id(unit)]


def test_compensation_reduces_output_error(tiny_model, windows):
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
            with apply_policy(sorted_model, one_pruned, outputs) as model:
                model(windows)
    plain, repaired = (seen[1] - seen[0]).norm(), (seen[2] - seen[0]).norm()
    assert repaired < 0.95 * plain

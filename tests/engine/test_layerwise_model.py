import copy

import pytest
import torch

from optimum_ffp.engine import LayerwiseModel
from optimum_ffp.engine.layerwise_model import HEADROOM, hidden_state_bytes
from optimum_ffp.evaluation import window_losses
from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import layerwise_of, make_sorted_model, make_tiny_model, random_policy


CPU = torch.device("cpu")


def offloaded(model) -> LayerwiseModel:
    return LayerwiseModel(model, find_family(model.config), CPU)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_layerwise_losses_equal_whole_model_losses(tiny_model, windows, batch_size):
    expected = window_losses(tiny_model, windows, batch_size)
    assert torch.allclose(layerwise_of(tiny_model).losses(windows, batch_size=batch_size)[0], expected, rtol=1e-6)


def test_offloaded_layers_give_bit_identical_losses(tiny_model, windows):
    resident, _ = make_sorted_model(copy.deepcopy(tiny_model), windows)
    layerwise = offloaded(tiny_model)
    # Some families have their weights transposed first.
    find_units(tiny_model, layerwise.family)
    kept = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    brought, _ = make_sorted_model(tiny_model, windows, layerwise=layerwise)
    policies = [random_policy(resident, seed) for seed in range(3)]
    losses = []
    for sorted_model in (resident, brought):
        changes = [sorted_model.change(policy, compensated=True) for policy in policies]
        losses.append(sorted_model.layerwise.losses(windows, changes))
    assert torch.equal(*losses)
    # Nothing is left of layers that are not loaded.
    assert len(resident._sorted) == len(resident.units) and not brought._sorted
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_stored_in_16_bits_are_computed_in_float32(tiny_model, windows, dtype):
    model = tiny_model.to(dtype)
    expected = layerwise_of(copy.deepcopy(model).float()).losses(windows)
    layerwise = LayerwiseModel(model, find_family(model.config), dtype=torch.float32)
    assert torch.equal(layerwise.losses(windows), expected)
    assert layerwise.stored_dtype == dtype
    assert all(tensor.dtype == dtype for layer in layerwise.layers for tensor in layer.parameters())


def test_losses_do_not_depend_on_chunk_size(tiny_model, windows, monkeypatch):
    together = layerwise_of(tiny_model).losses(windows)
    monkeypatch.setattr("optimum_ffp.engine.layerwise_model.RESIDENT_BYTES", 1)
    assert layerwise_of(tiny_model).chunk_size(windows) == 1
    assert torch.equal(layerwise_of(tiny_model).losses(windows), together)


def test_chunk_of_windows_fills_free_memory(monkeypatch):
    monkeypatch.setattr("optimum_ffp.engine.layerwise_model.RESIDENT_BYTES", 3)
    monkeypatch.setattr("optimum_ffp.engine.layerwise_model.OFFLOADED_BYTES", 10)
    assert hidden_state_bytes(True, 800, 2) == 3
    # On an accelerator as many as have room there beside what else is computed.
    assert hidden_state_bytes(True, 800, 2, device_free=900) == 900 // (HEADROOM + 1)
    assert hidden_state_bytes(True, 0, 1, 9) == 3
    assert [hidden_state_bytes(False, free, 2) for free in (800, 40)] == [50, 10]


def test_hidden_states_are_stored_in_given_dtype_without_leaving_hooks(tiny_model, windows):
    layerwise = layerwise_of(tiny_model)
    hidden, arguments = layerwise.embed(windows, torch.bfloat16)
    assert hidden.dtype == torch.bfloat16 and hidden.shape == (6, 24, 32)
    layer, outputs = layerwise.layers[0], []
    with layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        tiny_model(windows[:1])
    expected = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    after = hidden[:1].clone()
    layerwise.runner(layer, arguments[0], torch.bfloat16).advance(after)
    assert float((after - expected).norm() / expected.norm()) < 0.05
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_model.modules())


def test_weights_with_dtype_other_than_model_keep_it():
    model = make_tiny_model()
    norm = model.model.layers[0].input_layernorm
    norm.weight.data = norm.weight.data.double()
    layerwise = LayerwiseModel(model, find_family(model.config), CPU, torch.float32)
    with layerwise.weights.loaded(0):
        assert norm.weight.dtype == torch.float64

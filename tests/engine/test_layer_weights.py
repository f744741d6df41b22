import pytest
import torch
from torch import nn

from optimum_ffp.engine.layer_weights import LayerWeights


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return [nn.Linear(4, 4) for _ in range(3)]


def test_resident_layers_are_changed_immediately(layers):
    weights = LayerWeights(layers, torch.device("cpu"), resident=True)
    before = layers[1].weight.data
    weights.change(1, lambda: layers[1].weight.data.add_(1))
    assert weights.resident and torch.equal(layers[1].weight.data, before)
    assert [index for index, _ in weights.iter_layers()] == [0, 1, 2]


def test_offloaded_layers_are_copied_while_running_and_restored(layers):
    weights, kept = LayerWeights(layers, torch.device("cpu")), [layer.weight.data for layer in layers]
    for index, layer in weights.iter_layers():
        assert torch.equal(layer.weight, kept[index]) and layer.weight.data_ptr() != kept[index].data_ptr()
        others = [other for other in range(3) if other != index]
        assert all(layers[other].weight.data_ptr() == kept[other].data_ptr() for other in others)
    assert [index for index, _ in weights.iter_layers(backwards=True)] == [2, 1, 0]
    with weights.loaded(2) as layer:
        assert layer is layers[2]
    assert all(layer.weight.data_ptr() == tensor.data_ptr() for layer, tensor in zip(layers, kept))


def test_change_is_reapplied_whenever_layer_is_loaded(layers):
    weights, before = LayerWeights(layers, torch.device("cpu")), layers[1].weight.data.clone()
    left = []
    weights.change(
        1, lambda: layers[1].weight.data.mul_(2), lambda: left.append(torch.equal(layers[1].weight, before))
    )
    for times in (1, 2):
        seen = {index: layer.weight.data.clone() for index, layer in weights.iter_layers()}
        assert torch.equal(seen[1], 2 * before) and torch.equal(layers[1].weight.data, before)
        assert left == times * [True]


def test_layers_are_restored_after_error_or_break(layers):
    weights, kept = LayerWeights(layers, torch.device("cpu")), [layer.weight.data_ptr() for layer in layers]
    for _ in weights.iter_layers():
        break
    with pytest.raises(RuntimeError), weights.loaded(0):
        raise RuntimeError
    assert [layer.weight.data_ptr() for layer in layers] == kept


def test_dtype_conversion_is_not_offloading(layers):
    converted = LayerWeights(layers, torch.device("cpu"), torch.float64)
    assert not converted.offloaded and not converted.resident
    elsewhere = torch.device("meta")
    assert LayerWeights(layers, elsewhere).offloaded and not LayerWeights(layers, elsewhere, resident=True).offloaded

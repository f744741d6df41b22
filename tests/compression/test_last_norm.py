"""The fit of the last norm against predictions of whole models, as transformers computes them."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import softmax

from optimum_ffp.compression.last_norm import PredictionLoss, last_norm_parameters
from optimum_ffp.engine import LayerwiseModel
from optimum_ffp.modeling.families import find_family
from tests.helpers import apply_policy, distill_layers, make_sorted_model, make_tiny_model, random_policy


@torch.no_grad()
def divergences(pruned, dense, windows):
    """KL divergence of the pruned model from the dense one at every position, shape `[windows, window length]`."""
    found, wanted = (softmax(model(windows).logits.double(), -1) for model in (pruned, dense))
    return (wanted * (wanted / found).log()).sum(-1)


@torch.no_grad()
def last_states(model, windows):
    """Hidden states after the last layer, before the norm."""
    states = []
    layer = LayerwiseModel(model, find_family(model.config)).layers[-1]
    hook = layer.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
    model(windows)
    hook.remove()
    return states[0]


def test_final_norm_parameters_act_only_after_last_layer(tiny_model, windows):
    layerwise = LayerwiseModel(tiny_model, find_family(tiny_model.config))
    found, states = last_norm_parameters(layerwise), last_states(tiny_model, windows)
    with torch.no_grad():
        before = tiny_model(windows, output_hidden_states=True).hidden_states[-1]
        for parameter in found.values():
            parameter.add_(1)
        after = tiny_model(windows, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(last_states(tiny_model, windows), states)
    assert len(found) == (2 if tiny_model.config.model_type in ("gpt2", "gpt_neox", "opt") else 1)
    assert not torch.allclose(before, after, atol=0.1)


@pytest.mark.parametrize("positions", [256, 5])
def test_prediction_loss_equals_divergence_of_whole_models(tiny_model, windows, positions, monkeypatch):
    monkeypatch.setattr("optimum_ffp.compression.last_norm.POSITIONS", positions)
    other = deepcopy(tiny_model)
    layerwise, changed = (LayerwiseModel(model, find_family(model.config)) for model in (tiny_model, other))
    generator = torch.Generator().manual_seed(3)
    for parameter in (*last_norm_parameters(changed).values(), *changed.layers[1].parameters()):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    numbers = [3, 0, 7, 4, 8, 1]
    loss = PredictionLoss(layerwise, last_states(other, windows), last_states(tiny_model, windows), numbers, None)
    with loss.ready():
        found = [float(loss(last_norm_parameters(changed), window)) for window in range(len(windows))]
    every = 1 if positions == 256 else 5
    of_positions = divergences(other, tiny_model, windows)
    expected = [float(row[number % every :: every].mean()) for row, number in zip(of_positions, numbers)]
    assert found == pytest.approx(expected, rel=1e-3) and min(expected) > 1e-3


def test_fitted_final_norm_lowers_held_out_divergence(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    policy, held_out = random_policy(sorted_model, 2), windows[:3]
    distilled = distill_layers(sorted_model, policy, windows, held_out, passes=4)
    norm, dense = distilled.last_norm, sorted_model.model
    pruned = sorted_model.slice(policy, distilled.weights)
    own = {name: weight for name, weight in distilled.weights.items() if name not in norm.weights}
    before = sorted_model.slice(policy, own)
    for model, found in ((before, norm.before), (pruned, norm.after)):
        assert found == pytest.approx(float(divergences(model, dense, held_out).mean()), rel=1e-3)
    assert norm.after < norm.before
    # Without making a copy of the model, too.
    layerwise = sorted_model.layerwise
    losses = layerwise.losses(windows, [sorted_model.change(policy, weights) for weights in (own, distilled.weights)])
    expected = [LayerwiseModel(model, layerwise.family).losses(windows)[0] for model in (before, pruned)]
    assert torch.allclose(losses, torch.stack(expected), atol=1e-5) and not torch.allclose(*losses, atol=1e-5)
    with apply_policy(sorted_model, policy, distilled.weights) as changed_model, torch.no_grad():
        assert torch.allclose(changed_model(windows).logits, pruned(windows).logits, atol=1e-4)


def test_model_without_final_norm_skips_fit(windows):
    """OPT-350m has a projection between the layers and the head instead."""
    model = make_tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    sorted_model, _ = make_sorted_model(model, windows)
    policy = random_policy(sorted_model, 2)
    assert distill_layers(sorted_model, policy, windows, windows[:3], passes=4).last_norm is None


def test_weights_are_restored_after_error(windows, monkeypatch):
    model = make_tiny_model().to(torch.bfloat16)
    layerwise = LayerwiseModel(model, find_family(model.config), dtype=torch.float32)
    before = {name: (tensor, tensor.dtype) for name, tensor in model.state_dict().items()}
    states = torch.randn(1, 8, model.config.hidden_size)

    def fails(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    # Only after the graph of the predictions is there.
    monkeypatch.setattr("optimum_ffp.compression.last_norm.kl_div", fails)
    loss = PredictionLoss(layerwise, states, states, [0], None)
    with pytest.raises(torch.OutOfMemoryError), loss.ready():
        weights = {name: one.clone().requires_grad_() for name, one in last_norm_parameters(layerwise).items()}
        loss(weights, 0)
    after = model.state_dict()
    assert all(
        after[name].dtype == dtype and torch.equal(after[name], tensor) for name, (tensor, dtype) in before.items()
    )

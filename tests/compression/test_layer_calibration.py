"""Distilled layers against errors that are computed from the outputs of whole models."""

import pytest
import torch
from torch import nn

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.compression.distillation import Distilled
from optimum_ffp.compression.training.layer import split_windows
from optimum_ffp.data import Windows
from optimum_ffp.utils.resume import Journal
from tests.helpers import (
    FIRST_TOKENS,
    apply_policy,
    count_tokens,
    distill_layers,
    make_sorted_model,
    make_tiny_model,
    random_policy,
)


@pytest.fixture
def unseen():
    return torch.randint(3, 128, (3, 24), generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def token_errors(model, dense, windows, layer, seen):
    """Errors of tokens, from hidden states that transformers returns; the last ones are normed."""
    found, target, of_seen = (
        one(ids, output_hidden_states=True).hidden_states[layer + 1]
        for one, ids in ((model, windows), (dense, windows), (dense, seen))
    )
    channels = nn.functional.normalize(of_seen, dim=-1).square().mean((0, 1))
    channels = (channels / channels.mean()).clamp_min(1e-3)
    return ((found - target).square() / channels).sum(-1).div(target.square().sum(-1)).flatten()


def layer_error(model, dense, windows, layer, seen):
    """Mean error of the tokens of windows, and of those of them that are read as first tokens."""
    first = windows[:, ::FIRST_TOKENS].reshape(-1, 1)
    return float(torch.cat([token_errors(model, dense, ids, layer, seen) for ids in (windows, first)]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("group", ["kv_group", "query_head"])
def test_held_out_layer_errors_match_whole_model_and_decrease(windows, group):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows, (group,))
    dense, policy, held_out = make_tiny_model(), random_policy(sorted_model, 2), windows[:3]
    distilled = distill_layers(sorted_model, policy, windows, held_out)
    pruned, fits = sorted_model.slice(policy, distilled.weights), distilled.layers
    for layer in (0, 1):
        assert fits[layer].after == pytest.approx(layer_error(pruned, dense, held_out, layer, windows), rel=1e-3)
    ridge = sorted_model.slice(policy, sorted_model.compensated(policy))
    assert fits[0].before == pytest.approx(layer_error(ridge, dense, held_out, 0, windows), rel=1e-3)
    assert fits[0].after < 0.95 * fits[0].before
    # Later layers make up for what earlier ones have lost.
    assert layer_error(pruned, dense, windows, 1, windows) < 0.95 * layer_error(ridge, dense, windows, 1, windows)


def test_all_layer_parameters_are_trained_and_dense_model_is_unchanged(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    model, policy = sorted_model.model, random_policy(sorted_model, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distilled = distill_layers(sorted_model, policy, windows, windows[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    fits = [*distilled.layers, distilled.last_norm]
    gained = [fit for fit in fits if fit.after < fit.before]
    assert gained and len(distilled.layers) == model.config.num_hidden_layers
    with apply_policy(sorted_model, policy, sorted_model.compensated(policy)):
        for fit in fits:
            for name, weight in fit.weights.items():
                parameter = model.get_parameter(name)
                assert weight.shape == parameter.shape and weight.dtype == parameter.dtype
                assert torch.equal(weight, parameter) == (fit not in gained)


def test_weights_that_do_not_improve_are_kept(windows, unseen):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    policy = random_policy(sorted_model, 2)
    distilled = distill_layers(sorted_model, policy, windows, unseen, passes=1, learning_rate=100.0)
    assert all(fit.after == fit.before for fit in [*distilled.layers, distilled.last_norm])
    found = distilled.weights
    assert all(torch.equal(found[name], weight) for name, weight in sorted_model.compensated(policy).items())
    # Where nothing is pruned, nothing is wrong.
    distilled = distill_layers(sorted_model, PruningPolicy.dense(sorted_model.units), windows, unseen, passes=1)
    assert all(fit.after < 1e-8 for fit in [*distilled.layers, distilled.last_norm])


@pytest.mark.parametrize("start_token", [False, True])
def test_token_counter_counts_all_layer_passes(windows, start_token):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    length, held_out, counter = windows.shape[1], windows[:3], sorted_model.layerwise.counter
    # Runs the first layer once to know what it returns.
    sorted_model.layerwise.embed(windows)
    read, before = [count_tokens(layer.mlp) for layer in sorted_model.model.model.layers], counter.layer_tokens
    distill_layers(sorted_model, random_policy(sorted_model, 2), windows, held_out, passes=2, start_token=start_token)
    each = length if start_token else length * 9 // 8
    # Forward passes that are differentiated count three times. Of a layer that gains nothing there are twice as many.
    trained = [count - 2 * (len(windows) + len(held_out)) * each for count in map(sum, read)]
    once = 2 * len(windows) * each
    passes = [1 + (count > once + 3 * len(held_out) * each) for count in trained]
    assert counter.layer_tokens - before == sum(map(sum, read)) + sum(2 * once * count for count in passes)


@pytest.mark.slow
def test_learning_rate_is_relative_to_weight_scale(windows):
    """A model whose keys are a thousand times as large and whose queries as small is the same, and learns the same."""
    scaled = make_tiny_model()
    for layer in scaled.model.layers:
        layer.self_attn.q_proj.weight.data /= 1024
        layer.self_attn.k_proj.weight.data *= 1024
    errors = []
    for model in (make_tiny_model(), scaled):
        sorted_model, _ = make_sorted_model(model, windows)
        distilled = distill_layers(sorted_model, random_policy(sorted_model, 2), windows, windows[:3])
        errors.append([fit.after for fit in distilled.layers])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.slow
def test_first_token_error_is_trained_without_start_token(windows):
    dense, errors = make_tiny_model(), {}
    first = windows[:, ::FIRST_TOKENS].reshape(-1, 1)
    for start_token in (False, True):
        sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
        policy = random_policy(sorted_model, 2)
        distilled = distill_layers(sorted_model, policy, windows, windows[:3], start_token=start_token)
        pruned = sorted_model.slice(policy, distilled.weights)
        errors[start_token] = float(token_errors(pruned, dense, first, 0, windows).mean())
    assert errors[False] < 0.95 * errors[True]
    # With a start token the error is that of windows alone.
    of_windows = token_errors(pruned, dense, windows[:3], 0, windows).mean()
    assert distilled.layers[0].after == pytest.approx(float(of_windows), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_trained_in_float32_and_kept_in_model_dtype(windows, dtype):
    sorted_model, _ = make_sorted_model(make_tiny_model().to(dtype), windows)
    # Most steps are smaller than what bfloat16 can add to a weight.
    distilled = distill_layers(sorted_model, random_policy(sorted_model, 2), windows, windows[:3], learning_rate=0.003)
    assert all(weight.dtype == dtype for weight in distilled.weights.values())
    assert distilled.layers[0].after < 0.99 * distilled.layers[0].before


def test_interrupted_distillation_resumes_to_identical_weights(windows, tmp_path):
    def calibrate(journal: Journal) -> Distilled:
        sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
        policy = random_policy(sorted_model, 2)
        return distill_layers(sorted_model, policy, windows, windows[:3], passes=2, journal=journal)

    expected = calibrate(Journal(tmp_path))
    for name in ("calibration-layer-1", "calibration-layer-2", "calibration-last-norm"):
        (tmp_path / f"{name}.entry.safetensors").unlink()
    resumed = calibrate(Journal(tmp_path))
    assert [fit.errors for fit in resumed.layers] == [fit.errors for fit in expected.layers]
    assert resumed.last_norm.errors == expected.last_norm.errors
    found, wanted = resumed.weights, expected.weights
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_split_windows_begin_with_start_token():
    windows = torch.arange(22).view(2, 11)
    assert torch.equal(split_windows(Windows(windows, "", ""), 1), windows)
    expected = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [11, 12, 13], [14, 15, 16], [17, 18, 19]]
    assert split_windows(Windows(windows, "", ""), 3).tolist() == expected
    windows[:, 0] = 99
    expected = [[99, *part[1:]] for part in expected]
    assert split_windows(Windows(windows, "", "", start_token=True), 3).tolist() == expected


@pytest.mark.slow
def test_batched_step_uses_mean_gradient(windows, monkeypatch):
    steps = []

    def watched(optimizer, *args):
        steps.append([group["params"][0].grad.clone() for group in optimizer.param_groups])

    monkeypatch.setattr("torch.optim.Adam.step", watched)

    def first_layer(batch: int) -> list[list[torch.Tensor]]:
        steps.clear()
        monkeypatch.setattr("optimum_ffp.compression.distillation.STEP_TOKENS", batch * windows.shape[1])
        sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
        distill_layers(sorted_model, random_policy(sorted_model, 2), windows, windows[:3], passes=1)
        # Those of the first layer; the others, and the last norm, take as many.
        taken = len(steps) // (1 + len(sorted_model.layerwise.layers))
        return steps[:taken]

    alone, together, some = (first_layer(batch) for batch in (1, 6, 4))
    # The weights are not changed by the steps: the gradient of a mean is the mean of the gradients.
    assert (len(alone), len(together), len(some)) == (6, 1, 2)
    for name, mean in enumerate(together[0]):
        expected = torch.stack([gradients[name] for gradients in alone]).mean(0)
        assert torch.allclose(mean, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))

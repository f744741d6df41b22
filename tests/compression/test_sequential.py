import math

import pytest
import torch

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.compression.sequential import (
    LAMBDAS,
    STRONG_LAMBDAS,
    UnitFit,
    calibrate_sequentially,
    sequential_tokens,
)
from optimum_ffp.evaluation import window_losses
from tests.helpers import WAYS, make_sorted_model, make_tiny_model, random_policy, tokens_read


@pytest.mark.slow
def test_nothing_pruned_changes_nothing(tiny_model, windows):
    sorted_model, _ = make_sorted_model(tiny_model, windows)
    dense = PruningPolicy.dense(sorted_model.units)
    for dense_target in (0.0, 1.0):
        outputs = calibrate_sequentially(sorted_model, dense, windows, windows, dense_target)
        for index, fit in outputs.items():
            assert torch.allclose(fit.weight, sorted_model.dense_output(index), atol=1e-3)


def test_first_unit_with_its_own_target_is_the_solution_on_recorded_inputs(tiny_model, windows):
    check_first_unit(tiny_model, windows)


def test_the_first_unit_without_query_heads(windows):
    check_first_unit(make_tiny_model(num_key_value_heads=2), windows, ("query_head",))


def check_first_unit(model, windows, groups=(None,)):
    sorted_model, _ = make_sorted_model(model, windows, groups)
    policy = random_policy(sorted_model, 2)
    outputs = calibrate_sequentially(sorted_model, policy, windows, windows, dense_target=0.0, ridge_lambda=0.1)
    unit, seen = sorted_model.model_units[0], []
    with unit.output.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        sorted_model.model(windows)
    inputs, weight = seen[0].double(), unit.output.module.weight.double()
    # Query heads of one rank follow each other; with one section nothing moves.
    columns = torch.arange(inputs.shape[1]).view(unit.sections, unit.unit.groups, -1).transpose(0, 1).flatten()
    inputs, weight = inputs[:, columns], weight[:, columns]
    kept = policy.sizes[0] * unit.output.block
    retained = inputs[:, :kept]
    damping = 0.1 * (retained.T @ retained).diagonal().mean()
    rows = torch.cat([retained, damping.sqrt() * torch.eye(kept)])
    start = sorted_model.compensated_output(0, policy.sizes[0]).double()
    targets = torch.cat([inputs @ weight.T, damping.sqrt() * start.T])
    expected = torch.linalg.lstsq(rows, targets).solution.T
    assert torch.allclose(outputs[0].weight.double(), expected, atol=1e-3)


def test_all_passes_of_a_layer_are_counted(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    layers = sorted_model.model.model.layers
    read = [tokens_read(layer) for layer in layers[1:]]
    calibrate_sequentially(sorted_model, random_policy(sorted_model, 2), windows, windows[:3])
    # The first window runs through the whole model once. Layers after the first are counted, which starts all windows.
    *others, last = (sum(one) - windows.shape[1] for one in read)
    tokens = windows.numel() + windows[:3].numel()
    assert all(other == 5 * tokens for other in others) and last == 4 * tokens
    assert sequential_tokens(tokens, len(layers)) == round((5 * tokens * (len(layers) - 1) + last) / len(layers))


def test_an_endless_pull_gives_the_ridge_solution(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    policy = random_policy(sorted_model, 2)
    outputs = calibrate_sequentially(sorted_model, policy, windows, windows, ridge_lambda=1e9)
    for index, size in enumerate(policy.sizes):
        assert torch.allclose(outputs[index].weight, sorted_model.compensated_output(index, size), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", [None, *WAYS])
def test_it_brings_the_loss_on_the_calibration_text_closer(way):
    sizes, groups = WAYS[way] if way else ({}, (None,))
    model = make_tiny_model(**sizes)
    # Text that the model is sure about, so that damage shows.
    prompts = torch.randint(3, 128, (48, 4), generator=torch.Generator().manual_seed(1))
    windows = model.generate(prompts, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=1)
    sorted_model, _ = make_sorted_model(model, windows, groups)
    policy = random_policy(sorted_model, 4)
    dense, dense_loss = model(windows).logits.log_softmax(-1), float(window_losses(model, windows).mean())

    def distances(outputs):
        """How far the pruned model is from the dense one: its KL divergence, and its loss on the text."""
        with sorted_model.applied(policy, outputs) as pruned:
            divergence = (dense.exp() * (dense - pruned(windows).logits.log_softmax(-1))).sum(-1).mean()
            return float(divergence), float(window_losses(pruned, windows).mean()) - dense_loss

    plain, ridge = distances(None), distances(sorted_model.compensated(policy))
    fits = calibrate_sequentially(sorted_model, policy, windows, windows[:4], dense_target=1.0, ridge_lambda=0.03)
    fitted = distances(dict(sorted_model.named_output(index, fit.weight) for index, fit in fits.items()))
    for before, repaired, after in zip(plain, ridge, fitted):
        assert 0 < after < 0.9 * min(before, repaired)


@pytest.mark.slow
def test_lambda_is_the_one_that_errs_least_on_windows_that_were_held_out(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    policy = PruningPolicy(sorted_model.units, tuple(unit.groups // 2 for unit in sorted_model.units))
    held_out = torch.randint(3, 128, (3, 24), generator=torch.Generator().manual_seed(9))
    chosen = calibrate_sequentially(sorted_model, policy, windows, held_out, dense_target=0.0)
    # Later units see what earlier ones were fitted to; only the first sees the same input in all runs. An endless pull
    # leaves it as it is before the fit.
    errors = {
        value: calibrate_sequentially(sorted_model, policy, windows, held_out, 0.0, value)[0].held_out_error
        for value in (*LAMBDAS, *STRONG_LAMBDAS, 1e12)
    }
    assert chosen[0].held_out_error == pytest.approx(min(errors.values()), rel=1e-6)
    assert min(errors, key=errors.get) == 1e12 and chosen[0].ridge_lambda == math.inf

    unit, seen = sorted_model.model_units[0], []
    with unit.output.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        sorted_model.model(held_out)
    target = seen[0] @ sorted_model.dense_output(0).T
    left = target - seen[0][:, : chosen[0].weight.shape[1]] @ chosen[0].weight.T
    expected = float(left.square().sum() / target.square().sum())
    assert expected > 1e-3 and chosen[0].held_out_error == pytest.approx(expected, rel=1e-3)


def test_with_little_text_units_stay_close_to_the_ridge_solution(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    policy = PruningPolicy(sorted_model.units, tuple(unit.groups // 2 for unit in sorted_model.units))
    held_out = torch.randint(3, 128, (3, 24), generator=torch.Generator().manual_seed(9))
    fits = calibrate_sequentially(sorted_model, policy, windows[:1], held_out, dense_target=0.0)
    # None stops where λ was tried first, none is worse than before, and what is left as it was is the same to the bit.
    assert any(fit.ridge_lambda in STRONG_LAMBDAS for fit in fits.values())
    assert not any(fit.ridge_lambda == LAMBDAS[-1] for fit in fits.values())
    assert fits[0].ridge_lambda == math.inf
    assert torch.equal(fits[0].weight, sorted_model.compensated_output(0, policy.sizes[0]))
    assert all(UnitFit.unpack(fit.pack(), "cpu").ridge_lambda == fit.ridge_lambda for fit in fits.values())


def test_no_hook_is_left_behind(windows):
    sorted_model, _ = make_sorted_model(make_tiny_model(), windows)
    calibrate_sequentially(sorted_model, random_policy(sorted_model, 0), windows, windows)
    assert not any(module._forward_pre_hooks for module in sorted_model.model.modules())

import torch

from optimum_ffp.evaluation import window_losses
from optimum_ffp.sequential import calibrate_sequentially
from tests.conftest import make_picomodel
from tests.test_nested import make_nested, random_policy


def test_nothing_pruned_changes_nothing(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    dense = type(random_policy(nested, 0)).dense(nested.units)
    for dense_target in (0.0, 1.0):
        outputs = calibrate_sequentially(nested, dense, windows, dense_target)
        for index, weight in outputs.items():
            assert torch.allclose(weight, nested.dense_output(index), atol=1e-3)


def test_first_unit_with_its_own_target_is_the_solution_on_recorded_inputs(picomodel, windows):
    nested, _ = make_nested(picomodel, windows)
    policy = random_policy(nested, 2)
    outputs = calibrate_sequentially(nested, policy, windows, dense_target=0.0, ridge_lambda=0.1)
    unit, seen = nested.model_units[0], []
    with unit.output.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, -2))):
        nested.model(windows)
    inputs, weight = seen[0].double(), nested.dense_output(0).double()
    kept = policy.sizes[0] * unit.output.block
    retained = inputs[:, :kept]
    damping = 0.1 * (retained.T @ retained).diagonal().mean()
    rows = torch.cat([retained, damping.sqrt() * torch.eye(kept)])
    start = nested.compensated(policy)[0].double()
    targets = torch.cat([inputs @ weight.T, damping.sqrt() * start.T])
    expected = torch.linalg.lstsq(rows, targets).solution.T
    assert torch.allclose(outputs[0].double(), expected, atol=1e-3)


def test_an_endless_pull_gives_the_ridge_solution(windows):
    nested, _ = make_nested(make_picomodel(), windows)
    policy = random_policy(nested, 2)
    outputs = calibrate_sequentially(nested, policy, windows, ridge_lambda=1e9)
    for index, weight in nested.compensated(policy).items():
        assert torch.allclose(outputs[index], weight, atol=1e-4)


def test_it_brings_the_loss_on_the_calibration_text_closer():
    model = make_picomodel()
    windows = torch.randint(3, 128, (48, 24), generator=torch.Generator().manual_seed(1))
    # Text that the model is sure about, so that damage shows.
    windows[:, 1:] = model(windows).logits.argmax(-1)[:, :-1]
    nested, _ = make_nested(model, windows)
    policy = random_policy(nested, 4)

    def distance(outputs):
        dense = model(windows).logits.log_softmax(-1)
        with nested.applied(policy, outputs) as pruned:
            return float((dense.exp() * (dense - pruned(windows).logits.log_softmax(-1))).sum(-1).mean())

    plain, ridge = distance(None), distance(nested.compensated(policy))
    assert distance(calibrate_sequentially(nested, policy, windows, dense_target=1.0)) < min(plain, ridge)
    assert torch.isfinite(window_losses(model, windows)).all()


def test_no_hook_is_left_behind(windows):
    nested, _ = make_nested(make_picomodel(), windows)
    calibrate_sequentially(nested, random_policy(nested, 0), windows)
    assert not any(module._forward_pre_hooks for module in nested.model.modules())

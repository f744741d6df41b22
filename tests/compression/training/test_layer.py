"""The training loop on a linear regression, whose solution is known."""

import pytest
import torch

from optimum_ffp.compression.training.layer import Fit, WeightTrainer, _size


# Windows to train on, held-out windows, tokens per window, features.
WINDOWS, HELD_OUT, TOKENS, FEATURES = 12, 4, 16, 6


@pytest.fixture
def regression():
    """Inputs and targets of all windows, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(WINDOWS + HELD_OUT, TOKENS, FEATURES, generator=generator)
    targets = inputs @ torch.randn(FEATURES, generator=generator)
    return inputs, targets + 0.05 * torch.randn(targets.shape, generator=generator)


class SquaredError:
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __call__(self, weights, window):
        return (self.inputs[window] @ weights["weight"] - self.targets[window]).square().mean()


def train(regression, passes, rate, seed=0, parts=1) -> Fit:
    trainer = WeightTrainer(WINDOWS, HELD_OUT, parts, passes, rate, seed)
    return trainer.fit(SquaredError(*regression), {"weight": torch.ones(FEATURES)}, scale=100.0)


@pytest.mark.parametrize("parts", [1, 3])
def test_weight_trainer_finds_least_squares_solution(regression, parts):
    inputs, targets = regression
    fit = train(regression, 60, 0.05, parts=parts)
    expected = torch.linalg.lstsq(inputs[:WINDOWS].flatten(0, 1), targets[:WINDOWS].flatten()[:, None]).solution[:, 0]
    assert torch.allclose(fit.weights["weight"], expected, atol=0.05)
    held_out = (inputs[WINDOWS:] @ fit.weights["weight"] - targets[WINDOWS:]).square().mean()
    assert fit.after == pytest.approx(float(held_out), rel=1e-5)
    assert fit.before == pytest.approx(float((inputs[WINDOWS:].sum(-1) - targets[WINDOWS:]).square().mean()), rel=1e-5)


def test_weights_of_best_pass_are_kept(regression, monkeypatch):
    seen, measure = [], WeightTrainer._held_out_error

    def measured(trainer, loss, weights):
        seen.append((measure(trainer, loss, weights), weights["weight"]))
        return seen[-1][0]

    monkeypatch.setattr(WeightTrainer, "_held_out_error", measured)
    # In between the rate is largest.
    fit = train(regression, 4, 4.0)
    error, weight = min(seen, key=lambda one: one[0])
    assert fit.after == error and torch.equal(fit.weights["weight"], weight)


def test_same_seed_gives_same_weights(regression):
    one, same, other = (train(regression, 2, 0.05, seed) for seed in (0, 0, 1))
    assert torch.equal(one.weights["weight"], same.weights["weight"])
    assert not torch.equal(one.weights["weight"], other.weights["weight"])


def test_weight_scale_ignores_zeros_of_sparse_matrix():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    sparse = torch.where(torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.7, 0.0, weight)
    assert _size(weight) == pytest.approx(1, rel=0.1) and _size(sparse) == pytest.approx(1, rel=0.1)
    assert _size(torch.zeros(8)) == 0


def test_learning_rate_warms_up_and_decays_over_all_passes(regression, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def watch(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    train(regression, 4, 0.05)
    assert len(rates) == 4 * WINDOWS
    peak = rates.index(max(rates))
    assert 0 < peak < 8 and rates[peak] == pytest.approx(0.05 * _size(torch.ones(1)), rel=0.05)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.3 * rates[peak] and rates[-1] < 0.01 * rates[peak]

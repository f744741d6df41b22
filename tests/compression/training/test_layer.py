"""The training loop on a linear regression, whose solution is known."""

from functools import partial

import pytest
import torch

from optimum_ffp.compression.training.layer import Fit, Trainer, _size


# Windows to train on, held-out windows, tokens per window, features.
WINDOWS, HELD_OUT, TOKENS, FEATURES = 12, 4, 16, 6
# So large that it gains nothing, and a quarter of it does.
GREAT = 16.0


@pytest.fixture
def regression():
    """Inputs and targets of all windows, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(WINDOWS + HELD_OUT, TOKENS, FEATURES, generator=generator)
    targets = inputs @ torch.randn(FEATURES, generator=generator)
    return inputs, targets + 0.05 * torch.randn(targets.shape, generator=generator)


def make_trainer(inputs, targets, parts: int = 1, dtype: torch.dtype = torch.float32) -> Trainer:
    def loss(weights, window):
        return (inputs[window] @ weights["weight"].to(inputs) - targets[window]).square().mean()

    start = {"weight": torch.ones(FEATURES, dtype=dtype)}
    return Trainer(loss, start, "head.", WINDOWS, HELD_OUT, parts, 100.0)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_least_squares_solution_is_found(regression, parts):
    inputs, targets = regression
    fit = Fit.unpack(make_trainer(inputs, targets, parts).fit(60, 0.05, 0))
    expected = torch.linalg.lstsq(inputs[:WINDOWS].flatten(0, 1), targets[:WINDOWS].flatten()[:, None]).solution[:, 0]
    assert torch.allclose(fit.weights["head.weight"], expected, atol=0.05)
    held_out = (inputs[WINDOWS:] @ fit.weights["head.weight"] - targets[WINDOWS:]).square().mean()
    assert fit.after == pytest.approx(float(held_out), rel=1e-5)
    assert fit.before == pytest.approx(float((inputs[WINDOWS:].sum(-1) - targets[WINDOWS:]).square().mean()), rel=1e-5)


def test_weights_of_the_best_pass_are_kept(regression, monkeypatch):
    inputs, targets = regression
    trainer, seen = make_trainer(inputs, targets), []
    measure = trainer._held_out_error
    monkeypatch.setattr(trainer, "_held_out_error", lambda weights: seen.append(weights["weight"]) or measure(weights))
    # In between the rate is largest.
    fit = Fit.unpack(trainer.fit(4, GREAT, 0))
    errors = [measure({"weight": weight}) for weight in seen]
    assert fit.after == min(errors)
    assert torch.equal(fit.weights["head.weight"], seen[errors.index(min(errors))])


def test_a_rate_that_gains_nothing_is_tried_again_at_a_quarter(regression):
    great, small = (Fit.unpack(make_trainer(*regression).fit(2, rate, 0)) for rate in (GREAT, GREAT / 4))
    assert small.after < small.before
    assert great.after == small.after


def test_weights_that_gain_nothing_stay_as_they_were(regression):
    inputs, targets = regression
    targets = torch.cat([targets[:WINDOWS], inputs[WINDOWS:].sum(-1)])
    fit = Fit.unpack(make_trainer(inputs, targets).fit(2, 0.05, 0))
    assert torch.equal(fit.weights["head.weight"], torch.ones(FEATURES)) and fit.after == fit.before


def test_steps_that_the_dtype_of_the_weights_can_not_hold_add_up(regression):
    train = partial(make_trainer(*regression, dtype=torch.bfloat16).fit, 40, 0.002, 0)
    fit = Fit.unpack(train())
    assert fit.weights["head.weight"].dtype == torch.bfloat16 and fit.after < 0.9 * fit.before


def test_the_same_seed_gives_the_same_weights(regression):
    one, same, other = (Fit.unpack(make_trainer(*regression).fit(2, 0.05, seed)) for seed in (0, 0, 1))
    assert torch.equal(one.weights["head.weight"], same.weights["head.weight"])
    assert not torch.equal(one.weights["head.weight"], other.weights["head.weight"])


def test_zeros_of_a_sparse_matrix_do_not_count_for_its_size():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    sparse = torch.where(torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.7, 0.0, weight)
    assert _size(weight) == pytest.approx(1, rel=0.1) and _size(sparse) == pytest.approx(1, rel=0.1)
    assert _size(torch.zeros(8)) == 0

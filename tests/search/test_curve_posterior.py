import numpy as np
import pytest

from optimum_ffp.allocation.policy import Unit
from optimum_ffp.errors import FFPError
from optimum_ffp.search.curve_posterior import (
    CURVATURE_SPREAD,
    PART_SPREAD,
    PARTS,
    SIZE_SCALE,
    MultiplierRegression,
    shared_covariance,
)


UNITS = tuple(
    Unit(layer, group, groups, 10) for layer in range(6) for group, groups in (("kv_group", 12), ("channel", 240))
)
KINDS = np.array([unit.kind for unit in UNITS])
CURVATURE = np.where(KINDS == "attention", 2.0, 1.4)


def steps(generator: np.random.Generator, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What curves of all units fall by in the parts below and above those that are kept."""
    decrease_down, decrease_up = np.zeros((2, len(UNITS), PARTS))
    rows = np.arange(len(UNITS))
    decrease_down[rows, kept - 1] = generator.uniform(0.5, 1.5, len(UNITS)) * 0.01
    decrease_up[rows, kept] = decrease_down[rows, kept - 1] / 2
    return decrease_down, decrease_up


def slopes(
    multiplier: np.ndarray, decrease_down: np.ndarray, decrease_up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First-order changes where giving up a step really costs `Σ T C`, with the curvature of the unit's kind."""
    down = (multiplier * decrease_down).sum(1) - CURVATURE * decrease_down.sum(1)
    up = -(multiplier * decrease_up).sum(1) - CURVATURE * decrease_up.sum(1)
    return down, up


def observed(noise: float, windows: int = 4, updates: int = 8, wild: int | None = None):
    generator = np.random.default_rng(0)
    multiplier = np.tile(1 + 0.3 * generator.standard_normal(len(UNITS))[:, None], PARTS)
    regression = MultiplierRegression(UNITS)
    for update in range(updates):
        decrease_down, decrease_up = steps(generator, np.full(len(UNITS), 5 + update % 2))
        spread = np.full(len(UNITS), noise)
        if wild is not None:
            spread[wild] = 50.0
        measured = []
        for slope, decreases in zip(slopes(multiplier, decrease_down, decrease_up), (decrease_down, decrease_up)):
            shaken = spread * decreases.sum(1) * generator.standard_normal((windows, len(UNITS)))
            measured.append(slope + shaken)
        regression.observe(*measured, decrease_down, decrease_up)
    return multiplier, regression


def test_multipliers_are_one_before_first_measurement():
    assert np.allclose(MultiplierRegression(UNITS).solve(), 1)


def solved_by_equations(regression: MultiplierRegression) -> np.ndarray:
    """The posterior mean by the covariance of all equations, whose size grows with their number."""
    unit, share, sign = (regression.equations[name] for name in ("unit", "share", "sign"))
    place = np.arange(PARTS) / PARTS
    smooth = share @ np.exp(-0.5 * ((place[:, None] - place) / SIZE_SCALE) ** 2)
    spread, prior = np.array([PART_SPREAD[kind] for kind in KINDS]), shared_covariance(UNITS)
    same_unit, same_kind = unit[:, None] == unit, KINDS[unit][:, None] == KINDS[unit]
    covariance = prior[np.ix_(unit, unit)] + spread[unit] ** 2 * same_unit * (smooth @ share.T)
    covariance += CURVATURE_SPREAD**2 * same_kind * np.outer(sign, sign) + np.diag(regression._errors())
    weights = np.linalg.solve(covariance, regression.equations["ratio"] - (1 - sign))
    found = 1 + np.repeat((prior[:, unit] @ weights)[:, None], PARTS, 1)
    for index, weight, row in zip(unit, weights, smooth):
        found[index] += spread[index] ** 2 * weight * row
    return found


def test_posterior_equals_gaussian_process_on_all_equations():
    _, regression = observed(noise=0.2)
    assert np.allclose(regression.solve(), solved_by_equations(regression), rtol=1e-7, atol=1e-7)


def test_posterior_recovers_multipliers_and_curvature_at_measured_sizes():
    multiplier, regression = observed(noise=1e-3)
    assert np.allclose(regression.solve()[:, 4:7], multiplier[:, 4:7], atol=0.05)


def test_posterior_error_grows_with_distance_from_measured_sizes():
    multiplier, regression = observed(noise=1e-3)
    found = regression.solve()
    errors = np.abs(found - multiplier).mean(0)
    assert errors[5] < errors[8] < errors[11]


def test_outlier_unit_does_not_affect_other_multipliers():
    multiplier, calm = observed(noise=0.2)
    _, shaken = observed(noise=0.2, wild=0)
    others = slice(1, None)
    error = np.abs(calm.solve() - multiplier)[others, 4:7].mean()
    assert np.abs(shaken.solve() - multiplier)[others, 4:7].mean() < 1.3 * error
    assert np.abs(shaken.solve()[0, 5] - 1) < 1


def test_flat_curves_add_no_equations():
    regression = MultiplierRegression(UNITS)
    decrease_down, decrease_up = steps(np.random.default_rng(0), np.full(len(UNITS), 5))
    decrease_down[3], decrease_up[3] = 0, 1e-200
    down, up = (np.random.default_rng(1).normal(0, 0.01, (4, len(UNITS))) for _ in range(2))
    regression.observe(down, up, decrease_down, decrease_up)
    assert np.isfinite(regression.solve()).all() and not (regression.equations["unit"] == 3).any()


def test_multiplier_combines_measurements_from_both_sides_of_step():
    """A part is above a policy and then below it: both measurements count."""
    multiplier = np.ones((len(UNITS), PARTS))
    regression = MultiplierRegression(UNITS)
    generator = np.random.default_rng(1)
    for kept, level in ((5, 2.0), (6, 1.0)):
        decrease_down, decrease_up = steps(generator, np.full(len(UNITS), kept))
        decrease_down[1:], decrease_up[1:] = 0, 0
        regression.observe(
            *(np.tile(slope, (4, 1)) for slope in slopes(level * multiplier, decrease_down, decrease_up)),
            decrease_down,
            decrease_up,
        )
    assert 1.2 < regression.solve()[0, 5] < 1.8


def test_restored_measurements_get_larger_errors():
    multiplier, regression = observed(noise=0.2)
    other = MultiplierRegression(UNITS)
    other.restore(regression.state())
    assert np.abs(other.solve() - 1).mean() < np.abs(regression.solve() - 1).mean()
    assert np.corrcoef(other.solve()[:, 5], regression.solve()[:, 5])[0, 1] > 0.9
    with pytest.raises(FFPError, match="no size gradients for 10 units; warm-start from a checkpoint of"):
        MultiplierRegression(UNITS[:10]).restore(regression.state())


def test_nonfinite_gradient_of_unit_does_not_affect_others():
    regression, gradients = MultiplierRegression(UNITS), np.ones((3, len(UNITS)))
    broken = gradients.copy()
    broken[1, 0] = np.nan
    decreases = np.ones((len(UNITS), PARTS))
    regression.observe(broken, -broken, decreases, decreases)
    assert set(regression.equations["unit"]) == set(range(1, len(UNITS))) and np.isfinite(regression.solve()).all()


def test_error_of_measured_ratio_equals_bootstrap():
    generator, windows = np.random.default_rng(2), 64
    gradients, decreases = generator.normal(1, 0.3, (windows, len(UNITS))), np.full((len(UNITS), PARTS), 0.5 / PARTS)
    regression = MultiplierRegression(UNITS)
    regression.observe(gradients, -gradients, decreases, decreases)
    drawn = gradients[generator.integers(windows, size=(2000, windows))].mean(1) / 0.5
    assert regression.equations["error"][: len(UNITS)] == pytest.approx(drawn.var(0), rel=0.3)

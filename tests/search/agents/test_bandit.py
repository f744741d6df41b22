import numpy as np
import pytest

from optimum_ffp.allocation.policy import Unit
from optimum_ffp.search.agents.bandit import MultiplierPosterior
from tests.search.landscape import MULTIPLIERS, UNITS, regret


@pytest.mark.parametrize("interaction", [0.0, 0.5])
def test_it_learns_the_multipliers_of_the_curves(interaction):
    found = regret("bandit", interaction)
    assert found < 0.15
    assert all(found < regret("bandit", interaction, method) for method in ("random", "evolutionary"))


def test_posterior_finds_the_multipliers_and_knows_what_it_does_not_know():
    posterior = MultiplierPosterior(UNITS)
    generator = np.random.default_rng(0)
    features = generator.uniform(0, 1, (60, 6))
    features[:, 5] = 0
    for start in range(0, 60, 6):
        # All candidates of an update are off by the same factor, as they are on easy or hard windows.
        seen = features[start : start + 6]
        posterior.observe(seen, seen @ MULTIPLIERS * np.exp(0.1 * generator.standard_normal()))
    # A factor that all multipliers share changes no policy.
    assert np.allclose(posterior.mean[:5] / posterior.mean[2], MULTIPLIERS[:5] / MULTIPLIERS[2], rtol=0.05)
    spread = np.sqrt(np.diag(posterior.covariance))
    assert spread[5] > spread[:5].max()


def test_units_that_are_close_in_depth_and_of_one_kind_are_expected_to_err_alike():
    units = [Unit(layer, kind, 4, 10) for layer in range(8) for kind in ("attention", "ffn")]
    covariance = MultiplierPosterior(units).covariance
    assert np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > 0
    # Unit 0 is the attention of layer 0, unit 1 its FFN, unit 2 and 14 the attention of layers 1 and 7.
    assert covariance[0, 2] > covariance[0, 14] > covariance[0, 1] - 1e-9
    posterior = MultiplierPosterior(units)
    features = np.zeros((1, 16))
    features[0, 0] = 0.1
    posterior.observe(features, np.array([0.2]))
    assert posterior.mean[0] > posterior.mean[2] > posterior.mean[14] > 1

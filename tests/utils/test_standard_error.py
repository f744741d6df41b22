import numpy as np
import pytest

from optimum_ffp.utils.standard_error import block_error


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_block_error_is_spread_of_means_of_correlated_windows(correlation):
    draws, means, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        noise = draws.normal(size=160)
        for index in range(1, 160):
            noise[index] += correlation * noise[index - 1]
        means.append(noise.mean())
        errors.append(block_error(noise))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.12)


def test_few_windows_are_taken_one_by_one():
    values = [1.0, 2.0, 4.0, 4.5]
    assert block_error(values) == pytest.approx(np.std(values, ddof=1) / 2)
    assert block_error(values[:1]) is None

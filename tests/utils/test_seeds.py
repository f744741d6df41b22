"""Seeds, and generators that libraries seed themselves."""

import random

import numpy as np
import pytest
import torch

from optimum_ffp.utils.seeds import preserved_global_generators, seed_of


def test_seeds_depend_on_every_number_and_their_order():
    assert len({seed_of(1, 2), seed_of(2, 1), seed_of(1, 3), seed_of(1)}) == 4
    assert seed_of(3, 4) == seed_of(3, 4) and 0 <= seed_of(3, 4) < 2**63


@pytest.mark.parametrize("fails", [False, True])
def test_generators_of_others_go_on_as_they_were(fails):
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    def seed() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    seed()
    expected = draw()
    seed()
    try:
        with preserved_global_generators():
            random.seed(0), np.random.seed(0), torch.manual_seed(0)
            draw()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert draw() == expected

"""Seeds of random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*keys: int) -> int:
    """Derive a seed from several numbers, such as the seed of a run and the index of a window."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def preserved_global_generators() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch afterwards, since some libraries seed them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

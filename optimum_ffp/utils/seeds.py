"""Seeds of random numbers."""

import numpy as np


def seed_of(*keys: int) -> int:
    """Derive a seed from several numbers, such as the seed of a run and the index of a window."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))

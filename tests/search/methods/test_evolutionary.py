import numpy as np

from tests.search.loss_landscape import SyntheticLandscape, run


def test_evolutionary_search_starts_random_and_improves():
    # Sixty-four evaluations, four of them for finalists, are seven generations of eight and one of four.
    random, evolved = (run(method)[1].calls for method in ("random", "evolutionary"))
    assert evolved[:8] == random[:8] and evolved[8:] != random[8:]
    losses = [[SyntheticLandscape().loss(policy) for policy in calls[30:60]] for calls in (random, evolved)]
    assert np.mean(losses[1]) < np.mean(losses[0])

import numpy as np

from tests.search.landscape import KnownLandscape, run


def test_it_begins_as_the_random_search_does_and_then_comes_closer():
    # Sixty-four evaluations, four of them for finalists, are seven generations of eight and one of four.
    random, evolved = (run(method)[1].calls for method in ("random", "evolutionary"))
    assert evolved[:8] == random[:8] and evolved[8:] != random[8:]
    losses = [[KnownLandscape().loss(policy) for policy in calls[30:60]] for calls in (random, evolved)]
    assert np.mean(losses[1]) < np.mean(losses[0])

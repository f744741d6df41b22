import numpy as np

from tests.search.landscape import KnownLandscape, run


def test_it_begins_as_the_random_search_does_and_then_comes_closer():
    # Sixty-four evaluations, four of them for finalists, are ten generations of six.
    random, evolved = (run(method)[1].calls for method in ("random", "evolutionary"))
    assert evolved[:6] == random[:6] and evolved[6:] != random[6:]
    losses = [[KnownLandscape().loss(policy) for policy in calls[30:60]] for calls in (random, evolved)]
    assert np.mean(losses[1]) < np.mean(losses[0])

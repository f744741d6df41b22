from tests.search.loss_landscape import run


def test_random_search_starts_at_no_search_policy_and_ends_no_worse():
    start = run("no-search")[0].policy
    result, landscape, _ = run("random")
    assert landscape.calls[0] == start
    assert landscape.loss(result.policy) <= landscape.loss(start)


def test_finalists_are_best_candidates_on_few_windows():
    # Two of sixteen evaluations are for finalists.
    result, landscape, _ = run("random", steps=16, update_samples=2)
    policies, compared = landscape.calls[:14], {policy for policy, window in landscape.read if window > 1}
    finalists = sorted(policies, key=landscape.loss)[:2]
    assert compared == {*finalists, policies[0]} and result.policy == finalists[0]

import numpy as np
import pytest

from optimum_ffp.errors import FFPError
from optimum_ffp.search.task import finalist_count
from tests.search.landscape import KnownLandscape, run


@pytest.fixture
def task():
    return run("no-search")[2]


def test_windows_go_round_and_none_comes_twice(task):
    assert task.windows(3).tolist() == [0, 1, 2]
    assert task.windows(3, offset=6).tolist() == [6, 7, 0]
    for count in (8, 50):
        assert task.windows(count, offset=5).tolist() == list(range(8))


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (2, 2), (26, 2), (64, 4), (1000, 62)])
def test_a_sixteenth_of_the_evaluations_is_for_finalists(steps, count):
    assert finalist_count(steps) == count


def test_rewards_are_ratios_of_perplexity_on_the_same_windows(task):
    policies = [task.map_scores(scores, 0.3) for scores in np.random.default_rng(0).normal(size=(3, 6))]
    windows, landscape = np.array([1, 5]), KnownLandscape()
    dense = np.exp(landscape.dense_losses[windows].mean())
    pruned = np.exp(landscape(policies, windows).mean(1))
    assert task.rewards(policies, 0.3, windows) == pytest.approx(dense / pruned)


def test_only_candidates_at_the_target_on_all_windows_can_be_the_best(task):
    task.best = None
    policy = task.map_scores(np.zeros(6), 0.3)
    task.excess_losses([policy], 0.3, np.arange(7))
    task.excess_losses([policy], 0.2, np.arange(8))
    assert task.best is None
    task.excess_losses([policy], 0.3, np.arange(8))
    assert task.best[1] == policy and [entry["final"] for entry in task.log[-3:]] == [False, False, True]


def test_finalists_are_compared_at_the_target(task):
    scores = np.random.default_rng(2).normal(size=(5, 6))
    task.best = None
    result = task.conclude(scores)
    losses = [KnownLandscape().loss(task.map_scores(row, 0.3)) for row in scores]
    assert result.policy == task.map_scores(scores[np.argmin(losses)], 0.3)


def test_overflowing_perplexity_is_worth_nothing_and_found_out_at_the_end(task):
    task.best, task.evaluate = None, KnownLandscape(broken=True)
    policy = task.map_scores(np.zeros(6), 0.3)
    assert task.rewards([policy], 0.3, np.arange(8)) == [0] and task.log[-1]["perplexity"] is None
    with pytest.raises(FFPError, match="no candidate at sparsity 0.3 has a finite perplexity"):
        task.conclude([np.zeros(6)])

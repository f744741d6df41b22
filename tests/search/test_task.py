import numpy as np
import pytest

from optimum_ffp.errors import FFPError
from optimum_ffp.search.task import halving
from tests.search.loss_landscape import SyntheticLandscape, run


@pytest.fixture
def task():
    return run("no-search")[2]


def test_windows_rotate_without_repetition(task):
    assert task.windows(3).tolist() == [0, 1, 2]
    assert task.windows(3, offset=6).tolist() == [6, 7, 0]
    for count in (8, 50):
        assert task.windows(count, offset=5).tolist() == list(range(8))


def test_excess_losses_are_log_perplexity_ratios_on_same_windows(task):
    policies = [task.map_scores(scores) for scores in np.random.default_rng(0).normal(size=(3, 6))]
    windows, landscape = np.array([1, 5]), SyntheticLandscape()
    dense = np.exp(landscape.dense_losses[windows].mean())
    pruned = np.exp(landscape(policies, windows).mean(1))
    assert np.exp(-task.excess_losses(policies, windows)) == pytest.approx(dense / pruned)


def test_best_requires_target_sparsity_and_all_windows(task):
    task.best = None
    policy = task.map_scores(np.zeros(6))
    task.excess_losses([policy], np.arange(7))
    task.excess_losses([policy], np.arange(8), 0.2)
    assert task.best is None
    task.excess_losses([policy], np.arange(8))
    assert task.best[1] == policy and [entry["final"] for entry in task.log[-3:]] == [False, False, True]


def test_finalists_are_compared_at_target_sparsity(task):
    scores = np.random.default_rng(2).normal(size=(5, 6))
    task.best = None
    result = task.conclude(scores)
    losses = [SyntheticLandscape().loss(task.map_scores(row)) for row in scores]
    assert result.policy == task.map_scores(scores[np.argmin(losses)])


@pytest.mark.parametrize(("finalists", "windows"), [(1, 28), (4, 28), (7, 28), (5, 6), (3, 4), (2, 2)])
def test_successive_halving_reads_no_window_twice(task, finalists, windows):
    generator = np.random.default_rng(3)
    losses, difficulty, read = {}, generator.uniform(0.5, 2, windows), []

    class Evaluate:
        dense_losses = generator.normal(3, 0.3, windows)

        def __call__(self, policies, chosen):
            read.extend((policy, window) for policy in policies for window in chosen)
            rows = [losses.setdefault(policy, 0.1 + 0.01 * len(losses)) * difficulty[chosen] for policy in policies]
            return self.dense_losses[chosen] + np.array(rows)

    task.best, task.evaluate, task.log = None, Evaluate(), []
    policies = [task.map_scores(scores) for scores in generator.normal(size=(finalists, 6))]
    best = policies[-1]
    losses[best] = 0.05
    found = task.choose(policies)
    assert found.policy == best and len({*read}) == len(read)
    dense = Evaluate.dense_losses.mean()
    assert found.best_perplexity == pytest.approx(np.exp(dense + 0.05 * difficulty.mean()))
    counts = sorted((sum(policy == one for one, _ in read) for policy in policies), reverse=True)
    if windows == 28 and finalists > 1:
        half, quarter = -(-finalists // 2), -(-finalists // 4)
        assert counts == [28] * quarter + [8] * (half - quarter) + [4] * (finalists - half)
    else:
        assert counts[0] == windows and counts[-1] >= min(4, windows)
    assert len(read) == sum(count * size for count, size in halving(finalists, windows))


def test_nonfinite_perplexity_is_rejected_at_end_of_search(task):
    task.best, task.evaluate = None, SyntheticLandscape(broken=True)
    policy = task.map_scores(np.zeros(6))
    assert task.excess_losses([policy], np.arange(8)) == [np.inf] and task.log[-1]["perplexity"] is None
    with pytest.raises(FFPError, match="no candidate has a finite perplexity"):
        task.conclude([np.zeros(6)])


@pytest.mark.parametrize("count", [4, 8])
def test_best_finalist_has_lowest_mean_over_all_windows(task, count):
    uneven, even = (task.map_scores(scores) for scores in np.random.default_rng(4).normal(size=(2, 6)))
    losses = {uneven: np.tile([0.1, 0.1, 0.9, 0.9], count // 4), even: np.full(count, 0.3)}

    class Evaluate:
        dense_losses = np.zeros(count)

        def __call__(self, policies, chosen):
            return np.array([losses[policy][chosen] for policy in policies])

    task.best, task.evaluate = None, Evaluate()
    found = task.choose([uneven, even])
    assert found.policy == even and found.best_perplexity == pytest.approx(np.exp(0.3))

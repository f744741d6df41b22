import pytest

from optimum_ffp.config.prune import GRADIENT_COST
from optimum_ffp.search.task import SearchTask
from tests.search.loss_landscape import SyntheticLandscape, regret, run


@pytest.mark.parametrize("interaction", [0.0, 0.5])
def test_gradient_agent_beats_random_and_evolutionary_search(interaction):
    found = regret("gradient", interaction)
    assert found < 0.15
    assert all(found < regret("gradient", interaction, method) for method in ("random", "evolutionary"))


def test_every_update_measures_new_policy_on_rotating_windows():
    """Each asks for the slopes of another policy, and windows of the pool take turns."""
    landscape = SyntheticLandscape()
    asked, measure = [], landscape.size_gradients

    def watch(policy, windows):
        asked.append((policy, tuple(windows)))
        return measure(policy, windows)

    landscape.size_gradients = watch
    run(agent="gradient", steps=16, update_samples=4, landscape=landscape)
    assert len(asked) == (16 - 2) // GRADIENT_COST
    policies, windows = zip(*asked)
    assert len(set(policies)) > 1 and policies[0] == run("no-search")[0].policy
    assert sorted(windows[0] + windows[1]) == list(range(8)) and windows[0] == windows[2]


def test_second_finalist_averages_second_half_of_search(monkeypatch):
    seen, map_scores = [], SearchTask.map_scores

    def watch(task, scores, *arguments):
        seen.append(scores)
        return map_scores(task, scores, *arguments)

    monkeypatch.setattr(SearchTask, "map_scores", watch)
    run(agent="gradient")
    *updates, last, averaged, _ = seen
    later = [*updates, last][(1 + len(updates)) // 2 :]
    assert averaged == pytest.approx(sum(later) / len(later))

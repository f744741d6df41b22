import numpy as np
import pytest

from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.search.environment import ProgressiveSchedule, PruningEnvironment
from optimum_ffp.search.task import SearchTask
from tests.helpers import plan_of, sparsity_budget
from tests.search.loss_landscape import REMOVED, SyntheticLandscape, run


class WideLandscape(SyntheticLandscape):
    """Thirty units with the same curve, whose true multipliers spread over two orders of magnitude."""

    units = tuple(Unit(layer, "channel", 200, 10) for layer in range(30))
    curves = [0.05 * REMOVED**2] * 30
    multipliers = np.exp(np.random.default_rng(1).standard_normal(30))
    budget, mapping = sparsity_budget(units, 0.2, 0.2), CurveMapping(curves)

    def loss_of_scores(self, scores: np.ndarray) -> float:
        return self.loss(self.mapping(scores, self.budget))


@pytest.fixture
def environment() -> PruningEnvironment:
    task = run("no-search")[2]
    task.log.clear()
    return PruningEnvironment(task, ProgressiveSchedule(40, 0.3, 8, start=0.25), candidates=4)


def test_environment_observes_scheduled_sparsity_in_one_step_episodes(environment):
    assert environment.reset().tolist() == pytest.approx(np.full((4, 1), 0.3 * environment.schedule.alpha(0)))
    actions = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    observed, rewards, done, _ = environment.step(actions)
    assert done.all() and rewards.shape == (4,)
    assert observed == pytest.approx(np.full((4, 1), 0.3 * environment.schedule.alpha(4)))
    assert all(environment.observation_space.contains(row) for row in observed)


def test_rewards_are_perplexity_ratios_to_dense_model(environment):
    actions = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    _, rewards, *_ = environment.step(actions)
    # At the start a quarter of the eight windows, and of the sparsity.
    landscape, sparsity = SyntheticLandscape(), environment.schedule.sparsity(0)
    policies = [environment.task.map_scores(action, sparsity) for action in actions]
    excess = np.array([landscape.loss(policy) for policy in policies]) * landscape.difficulty[:2].mean()
    assert rewards == pytest.approx(np.exp(-excess), rel=1e-5)
    assert {entry["samples"] for entry in environment.task.log} == {2}


def test_history_gains_are_centered_within_each_update(environment):
    for seed in range(2):
        environment.step(np.random.default_rng(seed).normal(size=(4, 6)).astype(np.float32))
    gains = np.array([gain for _, gain in environment.history]).reshape(2, 4)
    assert gains.sum(1) == pytest.approx(0, abs=1e-6) and (gains.std(1) > 0).all()


def test_schedule_rises_to_target_sparsity():
    schedule = ProgressiveSchedule(1000, 0.3, 32, start=0.25)
    alphas = [schedule.alpha(step) for step in range(0, 1001, 50)]
    assert alphas == sorted(alphas)
    assert schedule.alpha(500) == pytest.approx(0.625)
    # k = 0.01 and t0 = 500 at 1000 steps, with the sign that the text asks for.
    assert schedule.alpha(700) == pytest.approx(0.25 + 0.75 / (1 + np.exp(-0.01 * 200)))
    assert schedule.sparsity(1000) == pytest.approx(0.3, rel=0.01)
    assert schedule.samples(0) == 8 and schedule.samples(1000) == 32
    assert ProgressiveSchedule(10, 0.3, 1).samples(0) == 1


def test_best_policy_ignores_candidates_below_target_sparsity():
    result, _, _ = run("ffp", "ppo")
    assert min(entry["perplexity"] for entry in result.log) < result.best_perplexity


def test_ppo_search_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("ffp", "ppo", steps=12)
    assert not list(tmp_path.iterdir())


def learned_scores(landscape, **options):
    """Scores of the trained agent without noise, which are those of its first finalist."""
    plan, finalists = plan_of(**options), []
    mapping = landscape.mapping
    task = SearchTask(plan, landscape.budget, mapping, landscape, curves=mapping)
    task.conclude = lambda scores, agent: finalists.extend(scores)
    plan.function("agent")(task)
    return finalists[0]


@pytest.mark.slow
def test_ppo_improves_on_curves_within_few_updates():
    landscape = WideLandscape()
    for seed in range(3):
        scores = learned_scores(landscape, agent="ppo", search_steps=128, seed=seed)
        assert landscape.loss_of_scores(scores) < 0.9 * landscape.loss_of_scores(np.zeros(30))


@pytest.mark.slow
def test_ppo_with_paper_preset_beats_random_search():
    landscape, generator = WideLandscape(), np.random.default_rng(100)
    learned = landscape.loss_of_scores(learned_scores(landscape, preset="paper", search_steps=1000, seed=0))
    drawn = min(landscape.loss_of_scores(generator.standard_normal(30)) for _ in range(1000))
    least = landscape.least_loss(landscape.budget)
    assert learned - least < 0.7 * (drawn - least)

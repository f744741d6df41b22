import numpy as np
import pytest

from optimum_ffp.config import FFPConfig
from optimum_ffp.errors import FFPError
from optimum_ffp.mapping import Budget, water_filling
from optimum_ffp.policy import PruningPolicy, Unit
from optimum_ffp.search import METHODS, SearchTask, search
from optimum_ffp.search.schedule import ProgressiveSchedule


UNITS = tuple(Unit(layer, "ffn", 200, 10) for layer in range(6))
# What a removed channel costs in every unit: the best policy keeps the first units and prunes the last.
COSTS = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.1])


class KnownLandscape:
    """A stand-in for the language model whose best policy is known."""

    dense_losses = np.full(4, 3.0)

    def __init__(self, broken: bool = False):
        self.calls: list[tuple[PruningPolicy, int]] = []
        self.broken = broken

    def __call__(self, policies, samples=None):
        samples = samples or 4
        self.calls += [(policy, samples) for policy in policies]
        removed = 1 - np.array([policy.retentions for policy in policies])
        losses = 3.0 + removed @ COSTS if not self.broken else np.full(len(policies), np.nan)
        return np.repeat(losses[:, None], samples, axis=1)


def make_task(landscape: KnownLandscape, steps: int = 64, sparsity: float = 0.3, seed: int = 0) -> SearchTask:
    return SearchTask(
        actions=len(UNITS),
        map_scores=lambda scores, target: water_filling(scores, Budget(UNITS, target, 0.1)),
        evaluate=landscape,
        sparsity=sparsity,
        steps=steps,
        max_samples=4,
        seed=seed,
    )


def run(method: str = "ffp", steps: int = 64, seed: int = 0, warm_start=None, **knobs):
    landscape = KnownLandscape()
    config = FFPConfig(method=method, search_steps=steps, seed=seed, **knobs)
    task = make_task(landscape, steps if method == "ffp" else 1, seed=seed)
    return search(task, config, warm_start), landscape


def test_schedule_rises_from_easy_to_the_target():
    schedule = ProgressiveSchedule(1000, 0.3, 32, start=0.25)
    alphas = [schedule.alpha(step) for step in range(0, 1001, 50)]
    assert alphas == sorted(alphas)
    assert schedule.alpha(500) == pytest.approx(0.625)
    # k = 0.01 and t0 = 500 at 1000 steps, with the sign that the text asks for.
    assert schedule.alpha(700) == pytest.approx(0.25 + 0.75 / (1 + np.exp(-0.01 * 200)))
    assert schedule.sparsity(1000) == pytest.approx(0.3, rel=0.01)
    assert schedule.samples(0) == 8 and schedule.samples(1000) == 32
    assert ProgressiveSchedule(10, 0.3, 1).samples(0) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 64, 100])
def test_no_more_evaluations_than_asked(steps):
    result, landscape = run(steps=steps)
    assert len(landscape.calls) == len(result.log) <= steps
    assert steps - len(landscape.calls) < 8


def test_same_seed_same_policy():
    assert run(seed=3)[0].policy == run(seed=3)[0].policy
    assert run(seed=3)[0].log == run(seed=3)[0].log
    assert run(seed=3)[0].log != run(seed=4)[0].log


def test_what_is_kept_is_the_best_seen_at_the_target_and_full_fidelity():
    result, landscape = run()
    finals = [entry for entry in result.log if entry["final"]]
    assert finals and all(entry["samples"] == 4 and entry["target_sparsity"] == 0.3 for entry in finals)
    assert result.perplexity == min(entry["perplexity"] for entry in finals)
    again = KnownLandscape()
    assert np.exp(again([result.policy]).mean()) == pytest.approx(result.perplexity)
    assert result.policy.sparsity == pytest.approx(0.3, abs=1 / 1200)
    # Candidates of the curriculum are better than any at the target, and must not be kept.
    assert min(entry["perplexity"] for entry in result.log) < result.perplexity


def test_agent_learns_where_it_hurts():
    result, _ = run(steps=1200, learning_rate=3e-3, alpha_start=1.0)
    searched = [entry["reward"] for entry in result.log]
    assert np.mean(searched[-200:]) > 1.5 * np.mean(searched[:200])
    uniform, _ = run("uniform")
    assert result.perplexity < 0.8 * uniform.perplexity


def test_policy_transfer_goes_on_where_the_first_search_stopped():
    first, _ = run(steps=800, learning_rate=3e-3, alpha_start=1.0)
    fresh, _ = run(steps=16)
    warm, _ = run(steps=16, warm_start=first.agent)
    assert warm.perplexity < fresh.perplexity


def test_agent_of_another_shape_is_refused():
    first, _ = run(steps=16)
    with pytest.raises(FFPError, match="warm-start from a checkpoint of the same model"):
        run(steps=16, warm_start=first.agent, hidden_sizes=(32, 32))


def test_perplexity_that_is_not_finite_has_reward_zero():
    task = make_task(KnownLandscape(broken=True), steps=16)
    with pytest.raises(FFPError, match="no candidate at sparsity 0.3 has a finite perplexity"):
        search(task, FFPConfig(search_steps=16))
    assert {entry["reward"] for entry in task.log} == {0.0}
    assert {entry["perplexity"] for entry in task.log} == {None}


def test_every_method_has_a_name_in_the_config():
    for method in METHODS:
        assert FFPConfig(method=method).method == method

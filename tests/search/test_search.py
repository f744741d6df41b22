import numpy as np
import pytest

from optimum_ffp.allocation.budget import Budget
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.mappings.water_filling import map_scores as water_filling
from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.analysis.size_gradients import SizeGradients
from optimum_ffp.config import FFPConfig
from optimum_ffp.errors import FFPError
from optimum_ffp.options import CHOICES, GRADIENT_COST, NO_SEARCH
from optimum_ffp.search.agents.bandit import MultiplierPosterior
from optimum_ffp.search.agents.ppo import ProgressiveSchedule
from optimum_ffp.search.methods import find_method
from optimum_ffp.search.task import SearchTask


UNITS = tuple(Unit(layer, "ffn", 200, 10) for layer in range(6))
REMOVED = np.linspace(1, 0, 201)
# What the curves say, and how wrong they are: the truth is `TRUST` times as much.
CURVES = [0.3 * (1 + layer) * REMOVED**2 for layer in range(6)]
TRUST = np.array([4.0, 0.3, 1.0, 2.0, 0.5, 1.0])
KINDS = [
    *(("ffp", agent) for agent in CHOICES["agent"]),
    *((method, "bandit") for method in ("random", "evolutionary", "no-search")),
]


class KnownLandscape:
    """A stand-in for the language model whose loss is known; some windows are harder to all policies than others."""

    def __init__(self, broken: bool = False, interaction: float = 0.0):
        generator = np.random.default_rng(9)
        self.dense_losses = 3.0 + 0.3 * generator.standard_normal(8)
        self.difficulty = np.exp(0.2 * generator.standard_normal(8))
        self.calls: list[PruningPolicy] = []
        self.spent = 0
        self.broken, self.interaction = broken, interaction

    def loss(self, policy: PruningPolicy) -> float:
        total = sum(t * curve[size] for t, curve, size in zip(TRUST, CURVES, policy.sizes))
        return total + self.interaction * total**2

    def __call__(self, policies, windows):
        self.calls += policies
        self.spent += len(policies)
        losses = np.array([np.nan if self.broken else self.loss(policy) for policy in policies])
        return self.dense_losses[windows] + losses[:, None] * self.difficulty[windows]

    def size_gradients(self, policy, windows):
        """What a backward pass would tell: the derivative of the loss, less the second-order term of each step."""
        losses = self([policy], windows)[0]
        self.spent += GRADIENT_COST - 1
        total = sum(t * curve[size] for t, curve, size in zip(TRUST, CURVES, policy.sizes))
        rise = np.nan if self.broken else 1 + 2 * self.interaction * total
        changes = []
        for neighbour in policy.neighbours():
            sizes = zip(TRUST, CURVES, policy.sizes, neighbour.sizes)
            change = [t * rise * (c[there] - c[here]) - abs(c[there] - c[here]) for t, c, here, there in sizes]
            changes.append(np.array(change) * self.difficulty[windows, None])
        return SizeGradients(losses, *changes)


def run(method="ffp", agent="bandit", steps=64, seed=0, warm_start=None, sparsity=0.3, landscape=None, **options):
    landscape = landscape or KnownLandscape()
    mapping = CurveMapping(CURVES)
    used = water_filling if agent == "ppo" else mapping
    config = FFPConfig(method=method, agent=agent, mapping="curves", search_steps=steps, seed=seed, **options)
    task = SearchTask(
        units=UNITS,
        map_scores=lambda scores, target: used(scores, Budget(UNITS, target, 0.1)),
        evaluate=landscape,
        sparsity=sparsity,
        steps=steps,
        max_samples=8,
        curves=mapping,
    )
    return find_method(config.method).search(task, config, warm_start), landscape, task


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


@pytest.mark.parametrize(("method", "agent"), KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 100])
def test_no_more_evaluations_than_asked(method, agent, steps):
    result, landscape, _ = run(method, agent, steps)
    assert 1 <= len(landscape.calls) == len(result.log) <= landscape.spent <= steps
    assert method in NO_SEARCH or steps - landscape.spent < 8


@pytest.mark.parametrize(("method", "agent"), KINDS)
def test_same_seed_same_policy(method, agent):
    first, again, other = (run(method, agent, seed=seed)[0] for seed in (3, 3, 4))
    assert first.policy == again.policy and first.log == again.log
    assert method in NO_SEARCH or first.log != other.log


@pytest.mark.parametrize(("method", "agent"), KINDS)
def test_what_is_kept_is_the_best_seen_at_the_target_and_full_fidelity(method, agent):
    result, landscape, _ = run(method, agent)
    finals = [entry for entry in result.log if entry["final"]]
    assert finals and all(entry["samples"] == 8 and entry["target_sparsity"] == 0.3 for entry in finals)
    assert result.perplexity == min(entry["perplexity"] for entry in finals)
    assert np.exp(landscape([result.policy], np.arange(8)).mean()) == pytest.approx(result.perplexity)
    assert result.policy.sparsity == pytest.approx(0.3, abs=1 / 1200)


@pytest.mark.parametrize(("method", "agent"), KINDS)
def test_perplexity_that_is_not_finite_has_reward_zero(method, agent):
    landscape = KnownLandscape(broken=True)
    with pytest.raises(FFPError, match="no candidate at sparsity 0.3 has a finite perplexity"):
        run(method, agent, landscape=landscape)


@pytest.mark.parametrize(("method", "agent"), KINDS)
def test_an_update_sees_no_window_twice(method, agent):
    found, most = (run(method, agent, steps=16, update_samples=count)[0] for count in (50, 8))
    assert found.policy == most.policy and found.log == most.log
    assert all(entry["samples"] <= 8 for entry in found.log)


def test_candidates_of_the_curriculum_are_not_kept():
    result, _, _ = run("ffp", "ppo")
    assert min(entry["perplexity"] for entry in result.log) < result.perplexity


@pytest.mark.slow
def test_ppo_learns_where_it_hurts():
    result, _, _ = run("ffp", "ppo", steps=1200, learning_rate=3e-3, alpha_start=1.0)
    losses = [-np.log(entry["reward"]) for entry in result.log]
    assert np.mean(losses[-200:]) < 0.8 * np.mean(losses[:200])


@pytest.mark.parametrize("interaction", [0.0, 0.5])
@pytest.mark.parametrize("agent", ["gradient", "bandit"])
def test_agents_learn_the_multipliers_of_the_curves(agent, interaction):
    landscape = KnownLandscape(interaction=interaction)
    found, _, _ = run(agent=agent, landscape=landscape)
    perfect = CurveMapping([t * curve for t, curve in zip(TRUST, CURVES)])(np.zeros(6), Budget(UNITS, 0.3, 0.1))
    prior, _, _ = run("no-search", landscape=landscape)
    loss, best, start = (landscape.loss(policy) for policy in (found.policy, perfect, prior.policy))
    assert loss - best < 0.15 * (start - best)
    for method in ("random", "evolutionary"):
        assert loss < landscape.loss(run(method, landscape=landscape)[0].policy)


def test_posterior_finds_the_multipliers_and_knows_what_it_does_not_know():
    posterior = MultiplierPosterior(UNITS)
    generator = np.random.default_rng(0)
    features = generator.uniform(0, 1, (60, 6))
    features[:, 5] = 0
    for start in range(0, 60, 6):
        # All candidates of an update are off by the same factor, as they are on easy or hard windows.
        seen = features[start : start + 6]
        posterior.observe(seen, seen @ TRUST * np.exp(0.1 * generator.standard_normal()))
    # A factor that all multipliers share changes no policy.
    assert np.allclose(posterior.mean[:5] / posterior.mean[2], TRUST[:5] / TRUST[2], rtol=0.05)
    spread = np.sqrt(np.diag(posterior.covariance))
    assert spread[5] > spread[:5].max()


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "steps"), [("gradient", 48), ("bandit", 48), ("ppo", 800)])
def test_policy_transfer_goes_on_where_the_first_search_stopped(agent, steps):
    options = {"learning_rate": 3e-3, "alpha_start": 1.0} if agent == "ppo" else {}
    first, _, _ = run(agent=agent, steps=steps, sparsity=0.2, **options)
    fresh, _, _ = run(agent=agent, steps=8)
    warm, _, _ = run(agent=agent, steps=8, warm_start=first.agent)
    assert warm.perplexity < fresh.perplexity


@pytest.mark.parametrize("agent", CHOICES["agent"])
def test_agent_of_another_shape_is_refused(agent):
    alien = {"features": np.zeros((3, 5)), "losses": np.zeros(3)}
    with pytest.raises(FFPError, match="warm-start from a checkpoint of the same model"):
        run(agent=agent, warm_start=alien)
    other, _, _ = run("ffp", "ppo", steps=8, hidden_sizes=(32, 32))
    with pytest.raises(FFPError, match="warm-start from a checkpoint of the same model"):
        run(agent=agent, warm_start=other.agent)


def test_every_method_has_a_name_in_the_config():
    assert {"ffp", "no-search", "random", "evolutionary", "uniform"} == set(CHOICES["method"])
    assert all(callable(find_method(name).search) for name in CHOICES["method"])


def test_units_that_are_close_in_depth_and_of_one_kind_are_expected_to_err_alike():
    units = [Unit(layer, kind, 4, 10) for layer in range(8) for kind in ("attention", "ffn")]
    covariance = MultiplierPosterior(units).covariance
    assert np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > 0
    # Unit 0 is the attention of layer 0, unit 1 its FFN, unit 2 and 14 the attention of layers 1 and 7.
    assert covariance[0, 2] > covariance[0, 14] > covariance[0, 1] - 1e-9
    posterior = MultiplierPosterior(units)
    features = np.zeros((1, 16))
    features[0, 0] = 0.1
    posterior.observe(features, np.array([0.2]))
    assert posterior.mean[0] > posterior.mean[2] > posterior.mean[14] > 1

"""What holds for every method and agent."""

import numpy as np
import pytest

from optimum_ffp.config import FFPConfig
from optimum_ffp.config.choices import find_choice
from optimum_ffp.config.fields import choices_of
from optimum_ffp.config.prune import GRADIENT_COST
from optimum_ffp.errors import FFPError
from tests.helpers import plan_of
from tests.search.loss_landscape import SEARCHES, UNITS, SyntheticLandscape, run


def test_every_method_is_choice_of_config():
    methods = choices_of(FFPConfig.__dataclass_fields__["method"])
    assert {"ffp", "given", "homogeneous", "no-search", "random", "evolutionary", "uniform"} == set(methods)
    assert all(callable(find_choice("method", name).search) for name in methods)


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_search_steps_bound_evaluations(method, agent, steps):
    result, landscape, task = run(method, agent, steps)
    most = steps + len(task.baselines)
    gradients = (landscape.spent - len(landscape.calls)) // (GRADIENT_COST - 1)
    cost = len(result.log) + (GRADIENT_COST - 1) * gradients
    assert 1 <= len(result.log) <= cost <= most
    assert most - cost < 8


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
def test_search_result_is_not_worse_than_baselines(method, agent):
    result, landscape, task = run(method, agent, steps=3, seed=1)
    assert landscape.loss(result.policy) <= min(map(landscape.loss, task.baselines.values()), default=np.inf)
    for name, policy in task.baselines.items():
        # One that drops out early is compared with the dense model on the windows that were read.
        ratios = [
            np.exp((landscape([policy], windows)[0] - landscape.dense_losses[windows]).mean())
            for windows in (np.arange(4, 8), np.arange(8))
        ]
        assert result.baselines[name] / np.exp(landscape.dense_losses.mean()) in [pytest.approx(one) for one in ratios]


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
def test_same_seed_gives_same_policy(method, agent):
    first, again, other = (run(method, agent, seed=seed)[0] for seed in (3, 3, 4))
    assert first.policy == again.policy and first.log == again.log
    assert first.log != other.log


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
def test_result_is_best_candidate_at_target_on_all_windows(method, agent):
    result, landscape, _ = run(method, agent)
    finals = [entry for entry in result.log if entry["final"]]
    assert finals and all(entry["samples"] == 8 and entry["target_sparsity"] == 0.3 for entry in finals)
    assert result.best_perplexity == min(entry["perplexity"] for entry in finals)
    assert np.exp(landscape([result.policy], np.arange(8)).mean()) == pytest.approx(result.best_perplexity)
    assert result.policy.sparsity == pytest.approx(0.3, abs=1 / 1200)


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
def test_search_without_finite_perplexity_is_rejected(method, agent):
    landscape = SyntheticLandscape(broken=True)
    with pytest.raises(FFPError, match="no candidate has a finite perplexity"):
        run(method, agent, landscape=landscape)


@pytest.mark.parametrize(("method", "agent"), SEARCHES)
def test_update_samples_are_limited_to_distinct_windows(method, agent):
    found, most = (run(method, agent, steps=16, update_samples=count)[0] for count in (50, 8))
    assert found.policy == most.policy and found.log == most.log
    assert all(entry["samples"] <= 8 for entry in found.log)


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "steps"), [("gradient", 48), ("ppo", 800)])
def test_warm_started_agent_beats_fresh_agent(agent, steps):
    options = {"learning_rate": 3e-3, "alpha_start": 1.0} if agent == "ppo" else {}
    first, _, _ = run(agent=agent, steps=steps, sparsity=0.2, **options)
    fresh, _, _ = run(agent=agent, steps=8)
    warm, _, _ = run(agent=agent, steps=8, warm_start=first.agent)
    assert warm.best_perplexity < fresh.best_perplexity


@pytest.mark.parametrize("agent", ["gradient", "ppo"])
def test_agent_of_other_shape_is_rejected(agent):
    other, _, _ = run("ffp", "ppo", steps=8, hidden_sizes=(32, 32))
    for state in ({"losses": np.zeros(3)}, other.agent):
        with pytest.raises(FFPError, match="same model"):
            plan_of(agent=agent, method="ffp").function("agent", "check_state")(state, UNITS)

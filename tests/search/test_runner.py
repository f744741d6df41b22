import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp import FFPConfig, FFPError
from optimum_ffp.allocation.mapping import uniform
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.policy import PruningPolicy, Unit, UnitSize, block_parameters
from optimum_ffp.config.choices import find_choice
from optimum_ffp.modeling.families import ModelUnit
from optimum_ffp.search.evaluator import CandidateEvaluator
from optimum_ffp.search.runner import PolicySearch, check_budget, find_budget
from tests.helpers import make_pruner, reference_perplexity, step_parameters


def model_units(variants):
    """Units without projections, of which only the numbers of groups count."""
    return [[ModelUnit(unit, ()) for unit in units] for units in variants]


@pytest.fixture
def search(save_tiny_model, data_folder):
    # With first tokens, fewer of the finalists and baselines differ.
    pruner = make_pruner(save_tiny_model(), data_folder, method="random", search_steps=6, first_tokens=0)
    return PolicySearch(pruner.measured, pruner.measured.plan)


@given(
    heads=st.tuples(st.integers(2, 6), st.integers(2, 8), st.sampled_from([1, 4, 64])),
    widths=st.tuples(st.integers(8, 200), st.integers(20, 400)),
    by_query_heads=st.lists(st.booleans(), min_size=1, max_size=8),
    sparsity=st.floats(0.01, 0.95),
    bounds=st.tuples(st.floats(0, 1), st.floats(0.5, 1)).map(sorted),
    data=st.data(),
)
def test_mixed_attention_groups_meet_budget(heads, widths, by_query_heads, sparsity, bounds, data):
    (kv_heads, per_kv_head, head_dim), (hidden, width), layers = heads, widths, len(by_query_heads)
    queries, keys = 2 * kv_heads * per_kv_head * head_dim * hidden, 2 * kv_heads * head_dim * hidden
    kv_groups = partial(Unit, group="kv_group", groups=kv_heads, group_parameters=(queries + keys) // kv_heads)
    query_heads = partial(
        Unit,
        group="query_head",
        groups=per_kv_head,
        group_parameters=queries // per_kv_head,
        fixed_parameters=keys,
    )
    ffns = [Unit(layer, "channel", width, 3 * hidden) for layer in range(layers)]
    variants = [[one(layer) for layer in range(layers)] + ffns for one in (kv_groups, query_heads)]
    assert len({block_parameters(variant) for variant in variants}) == 1
    config = FFPConfig(sparsity=sparsity, min_retention=bounds[0], max_retention=bounds[1])
    try:
        check_budget(None, model_units(variants), config, config.limits)
    except FFPError:
        return
    units = [variants[chosen][layer] for layer, chosen in enumerate(by_query_heads)] + ffns
    budget = find_budget(None, units, config, config.limits)
    scores = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=len(units), max_size=len(units))))
    curves = CurveMapping([np.linspace(1, 0, unit.groups + 1) ** 2 for unit in units])
    greedy = find_choice("mapping", "greedy").map_scores
    for policy in (uniform(budget), curves(scores, budget), greedy(scores, budget)):
        gap = (1 - sparsity) * block_parameters(units) - policy.kept_parameters
        can_grow = policy.sizes < budget.largest
        # No unit can grow by a step.
        assert -1 < gap < min((step_parameters(unit) for unit, can in zip(units, can_grow) if can), default=np.inf) + 1
        saved = json.loads(json.dumps([row.to_dict() for row in policy.rows]))
        assert PruningPolicy.from_rows([*map(UnitSize.from_dict, saved)], units) == policy


def test_infeasible_sparsity_suggests_other_attention_group():
    ffn = Unit(0, "channel", 100, 1)
    variants = [
        [Unit(0, "kv_group", 10, 90), ffn],
        [Unit(0, "query_head", 10, 50, 400), ffn],
    ]
    check = partial(check_budget, None, model_units(variants), FFPConfig())
    message = "the maximum is 0.48.*; lower sparsity, or .*, or choose attention 'kv-groups'$"
    with pytest.raises(FFPError, match=message):
        check({"sparsity": 0.7})
    with pytest.raises(FFPError, match="lower sparsity, or lower min_retention$"):
        check({"sparsity": 0.9})
    check({"sparsity": 0.4})


def test_search_record_matches_evaluations(search):
    measured, entries = search.measured, []
    found = search.run(on_entry=entries.append)
    assert found.log == entries and 6 < len(entries) <= 6 + 2
    record = found
    assert (record.plan.method, len(record.log), record.to_record().non_finite) == ("random", len(entries), 0)
    assert record.windows == measured.data.search.describe()
    sorted_model, tokens = measured.prepared.sorted_model, measured.data.search.tokens
    assert record.dense_perplexity == pytest.approx(reference_perplexity(sorted_model.model, tokens), rel=1e-5)
    sliced = sorted_model.slice(found.policy, sorted_model.compensated(found.policy))
    assert record.best_perplexity == pytest.approx(reference_perplexity(sliced, tokens), rel=1e-5)


@pytest.mark.parametrize("calibration", ["ridge", "layers"])
def test_baselines_are_policies_of_methods_without_search(search, calibration):
    measured, counter, plan = search.measured, search.measured.layerwise.counter, search.plan
    plan, sorted_model = replace(plan, calibration=calibration), measured.prepared.sorted_model
    baselines = PolicySearch(measured, plan).run().baselines
    assert baselines.keys() == {"uniform", "no-search"}
    for name, found in baselines.items():
        before = counter.tokens
        alone = PolicySearch(measured, replace(plan, method=name)).run()
        assert not alone.log and counter.tokens == before
        sliced = sorted_model.slice(alone.policy, sorted_model.compensated(alone.policy))
        assert found == pytest.approx(reference_perplexity(sliced, measured.data.search.tokens), rel=1e-5)


def test_no_search_with_training_prunes_earlier_layers_more(search):
    def later_share(method, calibration):
        config = replace(search.plan, method=method, calibration=calibration)
        policy = PolicySearch(search.measured, config).run().policy
        removed = [(unit.groups - size) * unit.group_parameters for unit, size in zip(policy.units, policy.sizes)]
        half = len(removed) // 2
        return sum(removed[half:]) / sum(removed)

    closed_form, layers, model = (later_share("no-search", one) for one in ("ridge", "layers", "model"))
    assert layers == model < closed_form
    assert later_share("uniform", "model") == later_share("uniform", "ridge")


@pytest.mark.parametrize("method", ["random", "ffp"])
def test_search_falls_back_on_best_baseline(method, save_tiny_model, data_folder):
    options = {"search_steps": 4, "method": method, "calibration": "ridge"}
    record = make_pruner(save_tiny_model(), data_folder, **options).search()
    assert record.best_perplexity <= min(record.baselines.values()) * (1 + 1e-9)


def test_candidates_at_bounds_are_not_pruned_beyond_budget(save_tiny_model, data_folder, monkeypatch):
    options = {"sparsity": 0.2, "max_retention": 0.9, "multiple_of": 16, "calibration": "none", "reward": "pruned"}
    options |= {"method": "random", "criterion": "wanda", "mapping": "greedy", "search_steps": 6}
    pruner = make_pruner(save_tiny_model("gpt-neox-sequential"), data_folder, **options)
    search, evaluate, seen = PolicySearch(pruner.measured, pruner.measured.plan), CandidateEvaluator.__call__, set()
    budget = search.budget
    assert budget.policy(budget.largest).sparsity > 0.2

    def keep(evaluator, policies, windows):
        seen.update(policies)
        return evaluate(evaluator, policies, windows)

    monkeypatch.setattr(CandidateEvaluator, "__call__", keep)
    search.run()
    for policy in seen:
        step = min(step_parameters(unit) for unit in policy.units)
        assert 0.8 * block_parameters(policy.units) - policy.kept_parameters < step + 1


TOO_FEW = [("gradient", 4, True), ("gradient", 5, False), ("ppo", 3, True)]


@pytest.mark.parametrize(("agent", "steps", "warns"), TOO_FEW)
def test_too_few_search_steps_is_warning(agent, steps, warns, save_tiny_model, data_folder, caplog):
    pruner = make_pruner(save_tiny_model(), data_folder, agent=agent, search_steps=steps)
    found = PolicySearch(pruner.measured, pruner.measured.plan).run()
    assert warns == ("nothing was searched; raise search_steps" in caplog.text)
    # A search has an equation for every gradient that it measured.
    assert warns == (not len(found.agent.get("unit", ())))
    caplog.clear()
    # As later sparsities of a sweep, which have half of the evaluations.
    PolicySearch(pruner.measured, pruner.measured.plan).run(found.agent)
    assert warns == ("nothing was searched with this budget; raise search_steps" in caplog.text)

import numpy as np
import pytest
import torch

from optimum_ffp.allocation.mapping import uniform
from optimum_ffp.search.runner import PolicySearch
from tests.helpers import make_pruner


def perplexity(model, windows) -> float:
    losses = [model(row[None], labels=row[None]).loss.double() for row in windows]
    return float(torch.stack(losses).mean().exp())


@pytest.fixture
def search(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder, method="random", search_steps=6)
    return PolicySearch(pruner.measured, pruner.config)


def test_the_record_is_what_was_done(search):
    measured, entries = search.measured, []
    found = search.run(on_entry=entries.append)
    assert found.log == entries and 6 < len(entries) <= 6 + 2
    record = found.search
    assert (record.method, record.candidate_evaluations, record.non_finite) == ("random", len(entries), 0)
    assert record.windows == measured.data.search.describe()
    sorted_model, tokens = measured.prepared.sorted_model, measured.data.search.tokens
    assert record.dense_perplexity == pytest.approx(perplexity(sorted_model.model, tokens), rel=1e-5)
    sliced = sorted_model.materialise(found.policy, sorted_model.compensated(found.policy))
    assert record.best_perplexity == pytest.approx(perplexity(sliced, tokens), rel=1e-5)


def test_baselines_are_the_uniform_policy_and_that_of_equal_scores(search):
    prepared, tokens = search.measured.prepared, search.measured.data.search.tokens
    zeros, budget = np.zeros(len(search.measured.units)), search.budget(search.config.sparsity)
    expected = {"uniform": uniform(zeros, budget), "no-search": prepared.curves(zeros, budget)}
    baselines = search.run().search.baselines
    assert baselines.keys() == expected.keys()
    for name, found in baselines.items():
        sliced = prepared.sorted_model.materialise(expected[name], prepared.sorted_model.compensated(expected[name]))
        assert found == pytest.approx(perplexity(sliced, tokens), rel=1e-5)


@pytest.mark.parametrize(("preset", "method"), [("default", "random"), ("default", "ffp"), ("paper", "ffp")])
def test_a_search_falls_back_on_the_baselines_but_not_the_papers(preset, method, save_tiny_model, data_folder):
    # A learning rate of 0 and few candidates: the paper's greedy policies are worse than uniform on such a model.
    options = {"search_steps": 4, "method": method, "preset": preset, "calibration": "ridge"}
    pruner = make_pruner(save_tiny_model(), data_folder, **options)
    record = pruner.search().search
    best = min(record.baselines.values())
    assert record.best_perplexity <= best * (1 + 1e-9) if preset == "default" else record.baselines

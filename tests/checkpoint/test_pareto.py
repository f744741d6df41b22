import json

import pytest

from optimum_ffp.checkpoint.pareto import save_front
from tests.helpers import make_pruner, prune_all


pytestmark = pytest.mark.slow


def test_front_of_a_sweep_has_every_sparsity_and_the_baselines(save_tiny_model, data_folder, tmp_path):
    pruner = make_pruner(save_tiny_model(), data_folder, search_steps=64)
    results = prune_all(pruner, [0.2, 0.3, 0.4])
    files = save_front(results[-1].search.front, tmp_path / "front")
    record = json.loads(files[0].read_text())
    assert record["search_windows"]["dataset"] == record["test_windows"]["dataset"] == f"./{data_folder.name}"
    assert [row["parameters"] for row in record["pruned"]] == [result.parameters for result in results]
    counts = [row["candidate_evaluations"] for row in record["pruned"]]
    assert counts[1] <= counts[0] / 2 + 2 and counts[2] <= counts[0] / 2 + 2
    for row, result in zip(record["pruned"], results):
        seen = row["search_perplexity"]
        assert set(seen) == {"uniform", "no-search", "searched"}
        assert seen["searched"] <= min(seen["uniform"], seen["no-search"]) * (1 + 1e-9)
        assert row["perplexity"] == result.perplexity
    assert record["dense"]["parameters"] == results[0].dense_parameters
    assert files[1].read_bytes().startswith(b"\x89PNG")

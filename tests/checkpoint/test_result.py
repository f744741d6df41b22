import json

import pytest

from optimum_ffp.utils.record import PolicyRecord


def test_parameter_counts_match_models(pruned):
    pruner, _ = pruned
    result = pruner.result
    dense = pruner.model.num_parameters()
    assert (result.dense_parameters, result.parameters) == (dense, result.model.num_parameters())
    removed = sum(unit.parameters for unit in pruner.measured.units) - result.policy.kept_parameters
    assert result.model_sparsity == pytest.approx(removed / dense)
    assert result.dtype == "float32"


def test_record_has_all_results_as_json(pruned):
    pruner, folder = pruned
    written, provenance = json.loads((folder / "ffp_config.json").read_text()), pruner.result.provenance().to_dict()
    assert PolicyRecord.of(pruner.result.policy).to_dict() == written["policy"]
    # Some values of these differ, since published records have no local folders.
    assert provenance.keys() == written["provenance"].keys()
    assert pruner.result.search.to_record().to_dict().keys() == written["search"].keys()
    assert provenance["perplexity"] == pruner.result.tests[0][1] | pruner.measured.data.test.describe()
    assert all(sample.keys() == {"prompt", "dense", "pruned"} for sample in provenance["samples"])
    assert len(provenance["samples"]) == 3 and "stable-baselines3" not in provenance["versions"]
    assert set(provenance["seconds"]) == set(provenance["peak_gib"]) == set(pruner.result.cost.seconds)

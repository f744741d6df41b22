import json
from importlib.metadata import version

import pytest

from optimum_ffp.checkpoint.result import final, package_versions
from tests.helpers import make_pruner


def test_counts_are_those_of_the_models(pruned):
    pruner, _ = pruned
    result = pruner.result
    dense = pruner.model.num_parameters()
    assert (result.dense_parameters, result.parameters) == (dense, result.model.num_parameters())
    removed = sum(unit.parameters for unit in pruner.measured.units) - result.policy.kept_parameters
    assert result.model_sparsity == pytest.approx(removed / dense)
    assert result.dtype == "float32"


def test_perplexity_is_that_of_the_model_as_it_is(pruned):
    result = pruned[0].result
    assert result.perplexity == result.perplexities[result.test.dataset]["calibrated"]
    assert final({"dense": 3.0, "searched": 5.0}) == 5.0


def test_what_the_folder_keeps_is_json_and_has_every_figure(pruned):
    pruner, folder = pruned
    record = json.loads(json.dumps(pruner.result.to_dict()))
    written = json.loads((folder / "ffp_config.json").read_text())
    assert record["policy"] == written["policy"]
    # What is published says nothing of the folders of this machine, so that some values of these differ.
    assert all(record[name].keys() == written[name].keys() for name in record)
    provenance = record["provenance"]
    assert provenance["perplexity"] == pruner.result.tests[0][1] | pruner.measured.data.test.describe()
    assert set(provenance["seconds"]) == set(provenance["peak_gib"]) == set(pruner.result.cost.seconds)
    assert [len(record["search"][name]) for name in ("sizes", "retentions")] == [len(pruner.measured.units)] * 2


def test_versions_are_those_that_are_installed():
    found = package_versions()
    assert found["torch"] == version("torch") and found["transformers"] == version("transformers")
    assert {"python", "optimum", "stable-baselines3"} <= set(found)


def test_what_is_removed_is_told_from_the_policy(save_tiny_model, data_folder, tmp_path):
    """Not from the method: attention may stay whole, and layers may be alike."""
    pruner = make_pruner(save_tiny_model(), data_folder, method="uniform", calibration="none")
    number = ["the same number in every layer", "a different number per layer"]
    for sparsity, removed, differ in ((0.1, "FFN channels", False), (0.3, "attention heads and FFN channels", True)):
        result = pruner.prune(sparsity)
        assert (result.removed, result.layers_differ) == (removed, differ), result.policy.sizes
        pruner.save_pretrained(tmp_path / f"{sparsity}")
        card, report = ((tmp_path / f"{sparsity}" / name).read_text() for name in ("README.md", "report.html"))
        assert f"{removed[0].upper()}{removed[1:]} are\nremoved, {number[differ]}" in card
        assert f"{removed} are removed, {number[differ]}" in report
        assert ("differ in size" in card) == differ and ("The checkpoint contains modeling code" in card) != differ

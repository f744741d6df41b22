"""Choices that are modules of another package."""

import json

import pytest
import torch

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from tests.helpers import SETTINGS, make_pruner, make_tiny_model, make_tokenizer


CRITERION = """
def score(weight, statistics, block):
    return weight.float().square().sum(0).view(-1, block).sum(1)
"""
METHOD = """
import numpy as np

def search(task, config, warm_start=None):
    return task.conclude([np.zeros(task.actions), np.ones(task.actions)])
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "largest_weights.py").write_text(CRITERION)
    (package / "two_candidates.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_a_criterion_and_a_method_of_another_package_are_used(own_package, save_tiny_model, data_folder):
    options = {"criterion": "own_package.largest_weights", "method": "own_package.two_candidates"}
    pruner = make_pruner(save_tiny_model(), data_folder, calibration="ridge", **options)
    result = pruner.prune()
    assert result.policy.sparsity == pytest.approx(0.2, abs=0.01)
    assert len(result.search.log) <= 2 + len(result.search.baselines)
    sizes = pruner.measured.prepared.sorted_model.dense_output(1).square().sum(0)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_the_command_line_takes_one(own_package, run_ffp, save_tiny_model, data_folder, tmp_path):
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["-m", save_tiny_model(), tmp_path / "out", "--dataset", data_folder, "--method", "uniform", *settings]
    code, _, errors = run_ffp("prune", *words, "--criterion", "own_package.largest_weights")
    assert code == 0, errors
    record = json.loads((tmp_path / "out" / "ffp_config.json").read_text())
    assert record["criterion"] == "own_package.largest_weights"
    # A file can't choose code.
    code, _, errors = run_ffp("prune", *words, "--overwrite", "--config", tmp_path / "out" / "ffp_config.json")
    assert code == 2 and "criterion" in errors


@pytest.mark.parametrize("criterion", ["own_package.missing", "own_package.two_candidates", "nowhere.score"])
def test_what_is_no_criterion_is_refused_before_anything_is_measured(own_package, data_folder, criterion):
    with pytest.raises(FFPError, match=criterion):
        FFPPruner(make_tiny_model(), make_tokenizer(), FFPConfig(dataset=str(data_folder), criterion=criterion))

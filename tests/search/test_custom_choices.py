"""Choices that are modules of another package, with options of their own."""

import json

import pytest

from optimum_ffp import FFPConfig, FFPError
from tests.helpers import SETTINGS, make_pruner


CRITERION = """
from dataclasses import dataclass
from optimum_ffp.config.fields import Config, option

@dataclass(frozen=True, kw_only=True)
class Options(Config):
    sign: float = option(1.0, "Sign of the scores.", low=-1, stage="measured")

def score(weight, statistics, block, options):
    return options.sign * weight.float().square().sum(0).view(-1, block).sum(1)
"""
METHOD = """
import numpy as np

def search(task, warm_start=None):
    return task.conclude([np.zeros(task.actions), np.ones(task.actions)])
"""
OWN = "own_package.largest_weights"


@pytest.fixture(autouse=True)
def own_package(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "largest_weights.py").write_text(CRITERION)
    (package / "two_candidates.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("options", [{}, {"sign": -1}])
def test_custom_criterion_and_method_are_used(options, save_tiny_model, data_folder):
    choices = {"criterion": OWN, "method": "own_package.two_candidates"}
    pruner = make_pruner(save_tiny_model(), data_folder, calibration="ridge", **choices, **options)
    result = pruner.prune()
    assert result.policy.sparsity == pytest.approx(0.2, abs=0.01)
    assert len(result.search.log) <= 2 + len(result.search.baselines)
    sizes = pruner.measured.prepared.sorted_model.dense_output(1).square().sum(0).tolist()
    assert sizes == sorted(sizes, reverse=not options)
    with pytest.raises(FFPError, match="sign"):
        pruner.prune(sign=0.5)


def test_custom_criterion_is_accepted_from_command_line_only(run_ffp, save_tiny_model, data_folder, tmp_path):
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["-m", save_tiny_model(), tmp_path / "out", "--dataset", data_folder, *settings, "--method", "uniform"]
    options, saved = tmp_path / "options.json", tmp_path / "out" / "ffp_config.json"
    options.write_text('{"sign": -1}')
    code, _, errors = run_ffp("prune", *words, "--criterion", OWN, "--config", options)
    assert code == 0 and "sign" not in errors, errors
    record, weights = json.loads(saved.read_text()), (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (record["criterion"], record["sign"]) == (OWN, -1)
    # A file can't choose code, the command line can.
    words += ["--overwrite", "--config", saved]
    code, _, errors = run_ffp("prune", *words)
    (line,) = errors.strip().splitlines()
    assert code == 2 and "install" in line and f"--criterion {OWN}" in line
    code, _, errors = run_ffp("prune", *words, "--criterion", OWN)
    assert code == 0, errors
    again = json.loads(saved.read_text())
    assert (again["criterion"], again["sign"]) == (OWN, -1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("criterion", ["own_package.missing", "own_package.two_candidates", "nowhere.score"])
def test_invalid_custom_criterion_is_rejected(criterion):
    with pytest.raises(FFPError, match=criterion):
        FFPConfig(criterion=criterion)


@pytest.mark.parametrize(("criterion", "sign"), [(OWN, "plus"), (OWN, -2), ("wanda", -1)])
def test_options_of_custom_criterion_are_validated(criterion, sign):
    with pytest.raises(FFPError, match="sign"):
        FFPConfig(criterion=criterion, sign=sign)

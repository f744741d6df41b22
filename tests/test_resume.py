"""Prunes that are killed at random moments and resumed end as if nothing had happened, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_ffp import FFPError, PruningPolicy
from optimum_ffp.candidates import CandidateEvaluator
from tests.test_pruner import make_pruner


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
@pytest.mark.parametrize(
    "kills, knobs",
    [(12, {}), (4, {"preset": "paper"}), (4, {"grad": False, "method": "evolutionary"})],
    ids=["default", "paper", "no-grad"],
)
def test_killed_and_resumed_is_the_same_bit_for_bit(save_picomodel, data_folder, tmp_path, kills, knobs):
    scratch = tmp_path / "prunes"
    scratch.mkdir()
    script = Path(__file__).with_name("kill.py")
    command = [sys.executable, script, save_picomodel(), data_folder, scratch, str(kills), json.dumps(knobs)]
    # A module of the tests is not on the path of a script.
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == kills
    assert [outcome for outcome in outcomes if outcome["differing"] or outcome["left"]] == []
    # Some kills came when something was done already, so that there was something to go on from.
    assert any(outcome["entries"] > 1 for outcome in outcomes)


def test_work_folder_goes_when_the_result_is_saved(save_picomodel, data_folder, tmp_path):
    pruner = make_pruner(save_picomodel(), data_folder, work_folder=tmp_path / "work")
    pruner.prune()
    assert (tmp_path / "work").is_dir()
    pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "work").exists()


def test_a_sweep_keeps_its_work_until_the_last_result_is_taken(save_picomodel, data_folder, tmp_path):
    pruner = make_pruner(save_picomodel(), data_folder, work_folder=tmp_path / "work")
    for number, _ in enumerate(pruner.sweep([0.2, 0.3])):
        pruner.save_pretrained(tmp_path / str(number))
        assert (tmp_path / "work").is_dir()
    assert not (tmp_path / "work").exists()


def test_resuming_takes_what_is_there(save_picomodel, data_folder, tmp_path, monkeypatch):
    folder = save_picomodel()
    first = make_pruner(folder, data_folder, work_folder=tmp_path / "work").prune()
    for stage in ("statistics.collect_statistics", "fisher.collect_fisher", "sequential._fit"):
        name = stage.rpartition(".")[2]
        for module in ("optimum_ffp." + stage.rpartition(".")[0], "optimum_ffp.preparation"):
            monkeypatch.setattr(f"{module}.{name}", None, raising=False)
    monkeypatch.setattr("optimum_ffp.candidates.window_losses", None)
    again = make_pruner(folder, data_folder, work_folder=tmp_path / "work").prune(resume=True)
    assert again.policy == first.policy and again.perplexities == first.perplexities and again.log == first.log
    state = first.model.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in again.model.state_dict().items())


def test_search_and_finish_resume_by_themselves(save_picomodel, data_folder, tmp_path, monkeypatch):
    folder = save_picomodel()
    first = make_pruner(folder, data_folder, work_folder=tmp_path / "work")
    first.open_journal([0.2, 0.3])
    before = [first.finish(first.search(sparsity)) for sparsity in (0.2, 0.3)]
    monkeypatch.setattr("optimum_ffp.candidates.window_losses", None)
    again = make_pruner(folder, data_folder, work_folder=tmp_path / "work")
    again.open_journal([0.2, 0.3], resume=True)
    after = [again.finish(again.search(sparsity)) for sparsity in (0.2, 0.3)]
    assert [one.policy for one in after] == [one.policy for one in before]
    assert [one.perplexities for one in after] == [one.perplexities for one in before]


def test_searches_of_one_pruner_measure_the_dense_model_once(save_picomodel, data_folder, monkeypatch):
    pruner = make_pruner(save_picomodel(), data_folder)
    evaluated, losses = [], CandidateEvaluator._losses

    def watched(evaluator, policy, windows):
        evaluated.append(policy)
        return losses(evaluator, policy, windows)

    monkeypatch.setattr(CandidateEvaluator, "_losses", watched)
    found = [pruner.search(sparsity) for sparsity in (0.2, 0.3)]
    assert evaluated.count(PruningPolicy.dense(pruner.units)) == 1
    assert len({one.record["perplexity"]["dense"] for one in found}) == 1


def test_state_of_another_prune_is_refused(save_picomodel, data_folder, tmp_path):
    make_pruner(save_picomodel(), data_folder, work_folder=tmp_path / "work").prune()
    with pytest.raises(FFPError, match=r"is of another prune: config.sparsity was \[0.2\] and is \[0.4\]"):
        make_pruner(save_picomodel(), data_folder, work_folder=tmp_path / "work").prune(0.4, resume=True)
    with pytest.raises(FFPError, match=r"is of another prune: .*model was"):
        make_pruner(save_picomodel("mistral"), data_folder, work_folder=tmp_path / "work").prune(resume=True)
    with pytest.raises(FFPError, match="was interrupted; go on with --resume"):
        make_pruner(save_picomodel(), data_folder, work_folder=tmp_path / "work").prune()
    with pytest.raises(FFPError, match="nothing to resume from: give FFPPruner a work_folder"):
        make_pruner(save_picomodel(), data_folder).prune(resume=True)

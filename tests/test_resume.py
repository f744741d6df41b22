"""Prunes that are killed at random moments and resumed end as if nothing had happened, bit for bit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.analysis.measurements import policy_losses
from optimum_ffp.modeling.loading import LoadOptions, load_dense
from optimum_ffp.utils.device_memory import device_name
from tests.helpers import SETTINGS, assert_same_weights, make_pruner, make_tokenizer, run_python


pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
@pytest.mark.parametrize("kills, options", [(3, {}), (2, {"preset": "paper"})], ids=["default", "paper"])
def test_killed_and_resumed_prune_is_bit_identical(save_tiny_model, data_folder, tmp_path, kills, options):
    scratch = tmp_path / "prunes"
    scratch.mkdir()
    script = Path(__file__).with_name("kill_and_resume.py")
    output = run_python(script, save_tiny_model(), data_folder, scratch, str(kills), json.dumps(options))
    outcomes = [json.loads(line) for line in output.splitlines()]
    assert len(outcomes) == kills
    assert [outcome for outcome in outcomes if outcome["differing"] or outcome["left"]] == []
    # Some kills came when something was done already, so that there was something to go on from.
    assert any(outcome["entries"] > 1 for outcome in outcomes)


def assert_same(result, other):
    assert (result.policy, result.log, result.perplexities) == (other.policy, other.log, other.perplexities)
    assert_same_weights(result.model, other.model)


def forbid_measurements(patch):
    for name in ("prepare.collect_statistics", "prepare.collect_fisher", "measurements.policy_losses"):
        patch.setattr(f"optimum_ffp.analysis.{name}", None)
    patch.setattr("optimum_ffp.search.evaluator.policy_losses", None)


def test_resumed_prune_repeats_no_computation(save_tiny_model, data_folder, tmp_path, monkeypatch):
    folder = save_tiny_model()
    first = make_pruner(folder, data_folder, work_folder=tmp_path / "work").prune()
    forbid_measurements(monkeypatch)
    monkeypatch.setattr("optimum_ffp.compression.training.layer.Adam", None)
    again = make_pruner(folder, data_folder, work_folder=tmp_path / "work").prune(resume=True)
    assert_same(again, first)
    assert again.cost.tokens == first.cost.tokens


def test_resumed_prune_repeats_no_speed_measurement(save_tiny_model, data_folder, tmp_path, monkeypatch):
    # No two measurements agree.
    noise = iter(np.geomspace(1, 0.99, 500))
    monkeypatch.setattr(
        "optimum_ffp.evaluation.latency.time_generation", lambda model, *_: (model.num_parameters() * next(noise), 0.0)
    )
    options = {"work_folder": tmp_path / "work", "speedup": 1.1, "workload": "8+4", "method": "no-search"}
    folder = save_tiny_model()
    first = make_pruner(folder, data_folder, **options).prune()
    monkeypatch.setattr("optimum_ffp.evaluation.latency.time_generation", None)
    again = make_pruner(folder, data_folder, **options).prune(resume=True)
    assert again.policy == first.policy and again.search.budget == first.search.budget


def test_resume_with_changed_dataset_is_rejected(save_tiny_model, data_folder, tmp_path):
    model, text = save_tiny_model(), data_folder / "test.txt"
    make_pruner(model, data_folder, work_folder=tmp_path / "work").prune()
    text.write_text(text.read_text() + "w3")
    with pytest.raises(FFPError, match="SHA-256"):
        make_pruner(model, data_folder, work_folder=tmp_path / "work").prune(resume=True)


def test_resumed_prune_reports_same_token_count(save_tiny_model, data_folder, tmp_path):
    folder = save_tiny_model()
    expected = make_pruner(folder, data_folder, work_folder=tmp_path / "all").prune().cost.tokens
    entries = sorted((tmp_path / "all").glob("*.entry.*"), key=lambda file: file.stat().st_mtime_ns)
    for kept in range(2, len(entries), len(entries) // 5):
        work = tmp_path / f"first-{kept}"
        shutil.copytree(tmp_path / "all", work)
        for file in entries[kept:]:
            (work / file.name).unlink()
        assert make_pruner(folder, data_folder, work_folder=work).prune(resume=True).cost.tokens == expected


def test_dense_model_is_measured_once_for_all_searches(save_tiny_model, data_folder, monkeypatch):
    pruner = make_pruner(save_tiny_model(), data_folder)
    measured = []

    def watched(sorted_model, policies, *args, **options):
        measured.extend([False] * len(policies) if policies else [True])
        return policy_losses(sorted_model, policies, *args, **options)

    for module in ("analysis.measurements", "search.evaluator"):
        monkeypatch.setattr(f"optimum_ffp.{module}.policy_losses", watched)
    found = [pruner.search(sparsity=sparsity) for sparsity in (0.2, 0.3)]
    assert measured.count(True) == 1 < len(measured)
    assert len({one.dense_perplexity for one in found}) == 1


def test_warm_started_search_has_separate_journal_entries(save_tiny_model, data_folder, tmp_path):
    folder, work = save_tiny_model(), tmp_path / "work"
    alone = make_pruner(folder, data_folder, agent="gradient", search_steps=48)
    agent = alone.search(sparsity=0.4).agent
    cold, warm = alone.search(sparsity=0.3), alone.search(agent, sparsity=0.3)
    assert cold.log != warm.log
    # In the same process, and in another that resumes with an agent which the first search had not.
    first = make_pruner(folder, data_folder, work_folder=work, agent="gradient", search_steps=48)
    first.open_journal()
    again = make_pruner(folder, data_folder, work_folder=work, agent="gradient", search_steps=48)
    found = [first.search(sparsity=0.3), first.search(agent, sparsity=0.3)]
    again.open_journal(resume=True)
    found.append(again.search(agent, sparsity=0.3))
    assert [(one.policy, one.log) for one in found] == [(one.policy, one.log) for one in (cold, warm, warm)]


def test_second_prune_shares_work_folder(save_tiny_model, data_folder, tmp_path, monkeypatch):
    folder, work = save_tiny_model(), tmp_path / "work"
    pruner = make_pruner(folder, data_folder, work_folder=work)
    pruner.prune(sparsity=0.2)
    second = pruner.prune(sparsity=0.3)
    with monkeypatch.context() as patch:
        forbid_measurements(patch)
        assert_same(make_pruner(folder, data_folder, work_folder=work).prune(sparsity=0.3, resume=True), second)
    pruner.save_pretrained(tmp_path / "out")
    assert not work.exists()
    # Nothing is kept again before it is asked for.
    pruner.search(sparsity=0.2)
    assert not work.exists()


def test_resume_is_allowed_on_same_gpu_model_only(save_tiny_model, data_folder, tmp_path, monkeypatch):
    names = {0: "NVIDIA A100", 1: "NVIDIA A100", 2: "NVIDIA H100"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    assert device_name(torch.device("cpu")) == "cpu"

    def open_on(index: int, resume: bool = True) -> None:
        pruner = make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work")
        with monkeypatch.context() as patch:
            patch.setattr("optimum_ffp.pruner.device_name", lambda _: device_name(torch.device("cuda", index)))
            pruner.open_journal(resume)
        pruner.measured.journal.value("entry", lambda: index)

    open_on(0, resume=False)
    open_on(1)
    with pytest.raises(FFPError, match="device was 'NVIDIA A100' and is 'NVIDIA H100'"):
        open_on(2)


def test_resume_with_different_windows_is_rejected(save_tiny_model, data_folder, tmp_path):
    first = make_pruner(save_tiny_model(), data_folder).measured.data
    config = FFPConfig(dataset="mine", **SETTINGS)

    def prune(data, resume):
        loaded = load_dense(str(save_tiny_model()), LoadOptions(device="cpu"))[0]
        pruner = FFPPruner(loaded, make_tokenizer(), config, work_folder=tmp_path / "work", data=data)
        return pruner.prune(resume=resume).perplexity

    found = prune(first, False)
    assert prune(first, True) == found
    other = replace(first, calibration=first.calibration.first(7))
    with pytest.raises(FFPError, match="data was"):
        prune(other, True)
    # The same windows in other roles.
    more = torch.cat([first.calibration.tokens, first.search.tokens[:1]])
    calibration = replace(first.calibration, tokens=more)
    moved = replace(first, calibration=calibration, search=replace(first.search, tokens=first.search.tokens[1:]))
    with pytest.raises(FFPError, match="data was"):
        prune(moved, True)


def test_resume_with_other_model_or_options_is_rejected(save_tiny_model, data_folder, tmp_path):
    make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work").prune()
    with pytest.raises(FFPError, match="config.seed was 0 and is 1"):
        make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work", seed=1).prune(resume=True)
    with pytest.raises(FFPError, match="model was"):
        make_pruner(save_tiny_model("mistral"), data_folder, work_folder=tmp_path / "work").prune(resume=True)
    with pytest.raises(FFPError, match="--resume"):
        make_pruner(save_tiny_model(), data_folder, work_folder=tmp_path / "work").prune()
    with pytest.raises(FFPError, match="work_folder"):
        make_pruner(save_tiny_model(), data_folder).prune(resume=True)

"""Calibration of the whole model: what it contains, what it keeps, and how it goes on after an interruption."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from optimum_ffp import FFPConfig
from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.compression.calibration import Calibration, CalibrationTask, is_improvement
from optimum_ffp.compression.training import whole_model
from optimum_ffp.compression.training.end_to_end import Training
from optimum_ffp.compression.training.trainer import DistillationTrainer
from optimum_ffp.data import Windows
from optimum_ffp.errors import FFPError
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning.estimate import Machine
from optimum_ffp.planning.make import make_plans, recalibrated
from optimum_ffp.utils import processes
from tests.helpers import (
    assert_same_weights,
    make_deep_model,
    make_pruner,
    make_tiny_model,
    save_with_tokenizer,
    without_sublayers,
    write_data,
)


# Text of the model itself, so that what it learns shows in few windows.
OPTIONS = {"sparsity": 0.5, "num_samples": 64, "held_out_samples": 12, "method": "uniform"}
OPTIONS |= {"calibration": "model", "model_rate": 1e-3}


def prepare(folder, name="llama", work=None, **options):
    save_with_tokenizer(make_tiny_model(name), folder)
    return make_pruner(folder, "self", work, **OPTIONS | options)


@pytest.fixture(autouse=True)
def small_training_steps(monkeypatch):
    """Of 8 windows of 24 tokens."""
    monkeypatch.setattr(whole_model, "STEP_TOKENS", 192)


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("dense"))


def test_finish_without_calibration_option_uses_planned_one(pruner):
    search = pruner.search()
    chosen = pruner.finish(search, calibration=None, distillation_passes=0)
    assert (chosen.plan.calibration, chosen.plan.lora) == ("model", 0)
    assert_same_weights(chosen.model, pruner.finish(search, distillation_passes=0).model)


def test_planned_lora_rank_is_kept_unless_calibration_changes(pruner):
    pytest.importorskip("peft")
    (plan,), _ = make_plans(
        [FFPConfig()], pruner.model, LoadOptions("cpu"), decided={"calibration": "model", "lora": 4}
    )
    ranks = [recalibrated(plan, {"model_passes": 2} | options).lora for options in ({}, {"calibration": "model"})]
    assert ranks == [4, 0]


def test_several_processes_without_work_folder_are_rejected(tmp_path, monkeypatch):
    pruner = prepare(tmp_path)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(FFPError, match="several processes need a work_folder"):
        pruner.search()
    assert "data" not in vars(pruner.measured)


def test_divergence_decides_whether_stage_is_kept():
    """As on the short chats of a shop, whose model answered badly although its perplexity fell."""
    before, after = {"perplexity": 14.5, "kl": 0.0387}, {"perplexity": 13.9, "kl": 0.0583}
    assert is_improvement("training", after, before) and not is_improvement("training", before, after)
    assert not is_improvement("training", before, {"perplexity": math.inf, "kl": math.nan})


@pytest.mark.parametrize(("passes", "before"), [(0, "ridge"), (1, "layers")])
def test_stage_that_raises_divergence_is_reverted(pruner, passes, before):
    search = pruner.search()
    result = pruner.finish(search, distillation_passes=passes, model_rate=1e3)
    assert result.calibration["kept"] == before
    assert [one["stage"] for one in result.calibration["stages"]] == ["ridge", *["layers"] * passes, "model"]
    assert_same_weights(result.model, pruner.finish(search, calibration=before, distillation_passes=passes).model)


def test_model_trains_at_two_thirds_of_rate_after_layers(pruner, monkeypatch):
    search, run, rates = pruner.search(), Training.run, []

    def watch(training, *arguments):
        matrices = [one for name, one in training.student.named_parameters() if "proj" in name]
        sizes = torch.tensor([float(one.detach().square().mean().sqrt()) for one in matrices])
        rates.append(training.learning_rate / float(sizes.median()))
        return run(training, *arguments)

    monkeypatch.setattr(Training, "run", watch)
    for passes in (0, 1):
        pruner.finish(search, distillation_passes=passes, model_rate=None)
    # To two digits.
    assert rates[1] / rates[0] == pytest.approx(2 / 3, rel=0.1)


@pytest.mark.parametrize(("last", "kept"), [(22.0, "ridge"), (18.0, "model")])
def test_stage_is_compared_with_kept_one(last, kept):
    """The layers are worse than ridge regression, and the model is better than the layers, but not than that."""
    figures = {"layers": (20.0, 25.0), "model": (last,)}

    def measured(name, measure):
        return [{"perplexity": one, "kl": one / 100} for one in figures[name.removeprefix("calibration-held-out-")]]

    sorted_model, journal = SimpleNamespace(layerwise=None, ridges=[None]), SimpleNamespace(value=measured)
    data = SimpleNamespace(held_out=Windows(torch.zeros(1, 2), "", ""))
    task = CalibrationTask(sorted_model, None, data, None, journal)
    weights = {stage: {stage: torch.zeros(1)} for stage in ("ridge", *figures)}
    found = Calibration(weights["ridge"])
    for stage in figures:
        found = task.conclude(stage, found, weights[stage])
    assert found.record["kept"] == kept and found.weights is weights[kept]


@pytest.mark.parametrize("name", ["llama", pytest.param("phi3", marks=pytest.mark.slow)])
def test_recorded_calibration_results_match_saved_model(name, tmp_path):
    pruner, dense = prepare(tmp_path, name), make_tiny_model(name)
    check_recorded_results(pruner, dense)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_removed_sublayers_are_skipped_by_every_calibration_stage(name, tmp_path):
    dense = make_deep_model(name)
    save_with_tokenizer(dense, tmp_path)
    units = tuple(unit.unit for unit in find_units(dense, find_family(dense.config)))
    policy = without_sublayers(PruningPolicy(units, tuple(unit.groups * 3 // 4 for unit in units)))
    (tmp_path / "policy.json").write_text(json.dumps([row.to_dict() for row in policy.rows]))
    dense = make_deep_model(name)
    pruner = make_pruner(tmp_path, "self", **OPTIONS | {"policy": str(tmp_path / "policy.json")})
    result = check_recorded_results(pruner, dense)
    assert result.policy == policy and result.model.config.num_hidden_layers == 3
    assert [one["layer"] for one in result.calibration["layers"]] == [0, 1, 3]


def check_recorded_results(pruner, dense):
    result, held_out = pruner.prune(), pruner.measured.data.held_out.tokens.long()
    *_, figures = result.calibration["stages"]
    assert result.calibration["kept"] == figures["stage"] == "model"
    logits, target = (model(held_out).logits[:, :-1].flatten(0, 1) for model in (result.model, dense))
    perplexity = cross_entropy(logits, held_out[:, 1:].flatten()).exp().item()
    divergence = kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean").item()
    assert (figures["perplexity"], figures["kl"]) == pytest.approx((perplexity, divergence), rel=1e-4)
    assert torch.equal(result.model.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert torch.equal(result.model.get_output_embeddings().weight, dense.get_output_embeddings().weight)
    return result


def test_short_text_is_read_for_requested_number_of_passes(tmp_path, monkeypatch):
    save_with_tokenizer(make_tiny_model("llama"), tmp_path)
    data = write_data(tmp_path / "text")
    options = OPTIONS | {"num_samples": 512, "search_samples": 1, "held_out_samples": 1}
    pruner = make_pruner(tmp_path, data, distillation_passes=0, model_passes=2, **options)
    training_step, read = DistillationTrainer.training_step, []

    def count(self, model, inputs, *arguments):
        read.extend(map(tuple, inputs["input_ids"].tolist()))
        return training_step(self, model, inputs, *arguments)

    monkeypatch.setattr(DistillationTrainer, "training_step", count)
    pruner.prune()
    windows = pruner.measured.data.calibration.tokens
    assert len(windows) < 512 and len(read) == 2 * len(windows)


@pytest.mark.slow
def test_interrupted_training_resumes_per_sparsity(tmp_path, monkeypatch):
    # In a folder too: the alignment of what is read from one changes the last bits of products.
    alone = prepare(tmp_path / "dense", work=tmp_path / "alone")
    expected = {sparsity: alone.prune(sparsity=sparsity) for sparsity in (0.3, 0.5)}
    training_step, steps = DistillationTrainer.training_step, []

    def interrupt(self, *arguments):
        steps.append(self.state.global_step)
        if steps[0] == 0 and steps[-1] == stop:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    monkeypatch.setattr(DistillationTrainer, "training_step", interrupt)
    stop = 5
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "dense", work=tmp_path / "work").prune(sparsity=0.5)
    again, stop = prepare(tmp_path / "dense", work=tmp_path / "work"), None
    for sparsity, first in ((0.3, 0), (0.5, 4)):
        steps.clear()
        assert_same_weights(again.prune(sparsity=sparsity, resume=True).model, expected[sparsity].model)
        assert steps[0] == first
    assert not [*(tmp_path / "work").rglob("checkpoint-*")]


@pytest.mark.slow
def test_calibration_chosen_by_memory_is_kept_on_resume(tmp_path, monkeypatch):
    def prune_with(host, **options):
        cpu = torch.device("cpu")
        monkeypatch.setattr("optimum_ffp.planning.make.Machine.of", lambda device: Machine(cpu, host))
        pruner = prepare(tmp_path / "dense", work=tmp_path / "work", **{"calibration": None} | options)
        return pruner.prune(resume=True).plan

    little = prune_with(0)
    assert little.calibration == "layers"
    assert prune_with(2**40).to_dict() == little.to_dict()
    assert prune_with(2**40, sparsity=0.3).calibration == "layers"
    assert prepare(tmp_path / "dense", calibration=None).prune().plan.calibration == "model"

"""FFPRecovery: a model comes out better, with a record of both steps, and goes on after an interruption."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from optimum_ffp import FFPError, FFPModelForCausalLM, FFPRecovery, RecoveryConfig
from optimum_ffp.compression.training.loss import DistillationLoss
from optimum_ffp.compression.training.trainer import DistillationTrainer
from optimum_ffp.evaluation import window_losses
from tests.helpers import make_tiny_model, read_files, save_with_tokenizer, write_data


SETTINGS = {"max_tokens": 960, "batch_tokens": 96, "seq_len": 24, "held_out_samples": 4, "eval_samples": 3}
SETTINGS |= {"evaluations": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def make_recovery(pruned, data):
    def make(source=pruned[1], work=None, teacher=pruned[0].model_id, **options) -> FFPRecovery:
        config = RecoveryConfig(**{"dataset": str(data)} | SETTINGS | options)
        return FFPRecovery.from_pretrained(source, config, teacher, work, device="cpu")

    return make


@pytest.fixture(scope="module")
def recovered(make_recovery, tmp_path_factory):
    """A finished recovery and the folder that it has written."""
    folder = tmp_path_factory.mktemp("recovered") / "out"
    recovery = make_recovery(work=folder.with_name("work"))
    recovery.recover()
    recovery.save_pretrained(folder)
    return recovery, folder


def test_recovery_improves_model_and_records_losses(recovered, pruned, data):
    recovery, folder = recovered
    record, base = recovery.record, pruned[0].model_id
    assert record.kept["kl"] < record.curve[0]["kl"]
    assert record.tokens == 960
    assert not folder.with_name("work").exists()
    assert (folder / "config.json").read_text() == (pruned[1] / "config.json").read_text()
    # What the record says is what the saved models have.
    dense = AutoModelForCausalLM.from_pretrained(base)
    before, after = (FFPModelForCausalLM.from_pretrained(path) for path in (pruned[1], folder))
    text = AutoTokenizer.from_pretrained(base)((data / "test.txt").read_text()).input_ids
    windows = torch.tensor(text[: 3 * 24]).view(3, 24)
    assert record.tests[0]["windows"] == 3 and record.tests[0]["split"] == "test"
    for name, model in {"dense": dense, "pruned": before, "recovered": after}.items():
        losses = window_losses(model, windows)
        assert recovery.losses[name][0] == pytest.approx(losses.tolist(), rel=1e-4)
        assert record.perplexity[name] == pytest.approx(losses.mean().exp().item(), 1e-4)


def test_callbacks_follow_training(make_recovery):
    class Recorder(TrainerCallback):
        def __init__(self):
            self.begun, self.perplexities = [], []

        def on_train_begin(self, args, state, control, **_):
            self.begun.append(state.max_steps)

        def on_evaluate(self, args, state, control, metrics, **_):
            self.perplexities.append(metrics["eval_perplexity"])

    recorder, recovery = Recorder(), make_recovery()
    curve = recovery.recover(callbacks=[recorder]).curve
    assert recorder.begun == [curve[-1]["step"]]
    assert recorder.perplexities == [row["perplexity"] for row in curve]


def test_second_recover_call_is_rejected(recovered):
    with pytest.raises(FFPError, match="once"):
        recovered[0].recover()


def test_recovered_model_is_pushed_to_hub(recovered, hub):
    recovery, folder = recovered
    recovery.push_to_hub("me/recovered", commit_message="Recovered")
    pushed, saved = hub.repositories["me/recovered"].at("main").files, read_files(folder)
    assert pushed.keys() - {".gitattributes"} == saved.keys()
    assert {name for name in saved if pushed[name] != saved[name]} == {"README.md", "ffp_config.json"}


@pytest.mark.slow
def test_training_is_logged_to_tensorboard(make_recovery, pruned, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    recovery = make_recovery(max_tokens=480, evaluations=1)
    recovery.report_to = ["tensorboard"]
    record = recovery.recover()
    (events,) = (tmp_path / "runs" / f"{pruned[1].name}-recovered").glob("events.out.tfevents.*")
    assert record.curve[-1]["step"] == 5
    assert events.read_bytes().count(b"eval/kl") == 2 and b"train/loss" in events.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
def test_bf16_training_keeps_exact_rotary_frequencies(make_recovery, folder, pruned, tmp_path, monkeypatch, lora):
    """A saved model has no frequencies, and is loaded with exact ones; its weights stay in their dtype."""
    if lora:
        pytest.importorskip("peft")
    FFPModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    recovery = make_recovery(folder, bf16=True, lora=lora, max_tokens=2000 if lora else 960)
    exact = AutoModelForCausalLM.from_pretrained(pruned[0].model_id).model.rotary_emb.inv_freq
    seen, loss = [], DistillationLoss.__call__

    def watch(self, *arguments, **options):
        seen.extend(one.model.rotary_emb.inv_freq.clone() for one in (self.student, self.teacher))
        return loss(self, *arguments, **options)

    monkeypatch.setattr(DistillationLoss, "__call__", watch)
    record = recovery.recover()
    seen += [one.model.rotary_emb.inv_freq for one in (recovery.student, recovery.teacher)]
    assert len(seen) > 4 and all(torch.equal(one, exact) for one in seen)
    # This machine's tests compute in float32.
    assert record.bf16 and record.compute_dtypes == {"dense": "float32", "pruned": "float32"}
    recovery.save_pretrained(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert record.dtype == "bfloat16" and {weight.dtype for weight in saved.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_dataset_mix_is_trained_on_and_reported_per_dataset(make_recovery, data, tmp_path):
    other = copytree(data, tmp_path / "other")
    for file in other.iterdir():
        file.write_text(" ".join(reversed(file.read_text().split())))
    mix = f"{data}:0.5,{other}:0.25,self:0.25"
    record = make_recovery(dataset=mix, eval_dataset=f"{other},{data}", learning_rate=1e-5).recover()
    assert [test["dataset"] for test in record.tests] == [str(other), str(data)]
    assert record.passes.keys() == {str(data), str(other)}
    content = record.to_dict()
    assert content["perplexity"].keys() >= {"dense", "pruned", "recovered", "dataset"}
    assert len(content["other_texts"]) == 1


@pytest.mark.slow
def test_recovered_model_can_be_recovered_again(recovered, make_recovery, tmp_path):
    recovery = make_recovery(recovered[1], evaluations=1, learning_rate=1e-5)
    recovery.recover()
    recovery.save_pretrained(tmp_path / "twice")
    first, second = json.loads((tmp_path / "twice" / "ffp_config.json").read_text())["recovery"]
    assert second["curve"][0]["kl"] == pytest.approx(first["kept"]["kl"], rel=1e-5)


def test_mismatched_student_and_teacher_are_rejected(make_recovery, pruned, tmp_path):
    save_with_tokenizer(make_tiny_model(), tmp_path / "tokens")
    save_with_tokenizer(make_tiny_model(vocab_size=120), tmp_path / "smaller")
    words = tmp_path / "tokens" / "tokenizer.json"
    words.write_text(words.read_text().replace('"w9"', '"other"'))
    cases = {"dense model": tmp_path / "tokens", "120 rows": tmp_path / "smaller", "--teacher": None}
    for word, teacher in cases.items():
        with pytest.raises(FFPError, match=word):
            make_recovery(teacher=teacher)
    with pytest.raises(FFPError, match="not pruned"):
        make_recovery(pruned[0].model_id)


def test_pruned_model_as_its_own_teacher_is_rejected(make_recovery, pruned, tmp_path):
    same = copytree(pruned[1], tmp_path / "same")
    for teacher in (pruned[1], same):
        with pytest.raises(FFPError, match="itself"):
            make_recovery(teacher=teacher)


def test_teacher_other_than_recorded_dense_model_is_warning(make_recovery, pruned, tmp_path, caplog):
    assert make_recovery().dense_teacher and "teacher" not in caplog.text
    larger = tmp_path / Path(pruned[0].model_id).name
    save_with_tokenizer(make_tiny_model(intermediate_size=80), larger)
    renamed = copytree(pruned[0].model_id, tmp_path / "renamed")
    for teacher in (larger, renamed):
        caplog.clear()
        assert not make_recovery(teacher=teacher).dense_teacher
        assert len(caplog.messages) == 1 and str(teacher) in caplog.text


def test_save_before_recover_and_resume_without_work_are_rejected(make_recovery, tmp_path):
    recovery = make_recovery()
    with pytest.raises(FFPError, match="recover"):
        recovery.save_pretrained(tmp_path / "out")
    with pytest.raises(FFPError, match="work_folder"):
        recovery.recover(resume=True)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_too_short_text_is_rejected_before_measuring_models(make_recovery, data, tmp_path, part):
    short = copytree(data, tmp_path / "short")
    (short / f"{part}.txt").write_text("w5 w6")
    recovery = make_recovery(dataset=str(short), work=tmp_path / "work")
    recovery._losses = None
    with pytest.raises(FFPError, match="window"):
        recovery.recover()
    assert not (tmp_path / "work").exists()


def test_out_of_memory_suggests_gradient_checkpointing(make_recovery, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(DistillationTrainer, "training_step", fail)
    with pytest.raises(FFPError, match="gradient_checkpointing"):
        make_recovery().recover()

"""FFPRecovery: a model comes out better, with a record of both steps, and goes on after an interruption."""

import json
from pathlib import Path
from shutil import copytree
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ffp import FFPError, FFPModelForCausalLM, FFPRecovery, RecoveryConfig
from optimum_ffp.evaluation import window_losses
from optimum_ffp.recovery.loss import DistillationLoss
from tests.helpers import contents, make_tiny_model, make_tokenizer


SETTINGS = {
    "max_tokens": "2k",
    "batch_tokens": 96,
    "seq_len": 24,
    "held_out_samples": 4,
    "eval_samples": 3,
    "eval_seq_len": 24,
}


@pytest.fixture
def base(pruned):
    return pruned[0].model_id


def make_recovery(folder, base, data, work=None, **options) -> FFPRecovery:
    config = RecoveryConfig(dataset=str(data), **SETTINGS | options)
    return FFPRecovery.from_pretrained(folder, config, base, work, device="cpu")


def test_a_model_is_recovered(folder, base, data_folder, tmp_path):
    recovery = make_recovery(Path(folder), Path(base), data_folder)
    before = {name: weight.clone() for name, weight in recovery.student.state_dict().items()}
    record = recovery.recover()
    assert record.kept["kl"] < record.curve[0]["kl"]
    assert record.tokens == 2016 and record.all_tokens == 4 * 2016
    assert record.stated["teacher"] == Path(base).name
    with pytest.raises(FFPError, match="trained already; load it again: make another FFPRecovery"):
        recovery.recover()
    recovery.save_pretrained(tmp_path / "recovered")
    assert (tmp_path / "recovered" / "config.json").read_text() == (folder / "config.json").read_text()
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path / "recovered")
    assert loaded.state_dict().keys() == before.keys()
    assert any(not torch.equal(weight, before[name]) for name, weight in loaded.state_dict().items())
    # What the record says is what the saved models have.
    (test,), (dense, pruned_model) = (
        record.tests,
        (model.from_pretrained(path) for model, path in ((AutoModelForCausalLM, base), (FFPModelForCausalLM, folder))),
    )
    text = AutoTokenizer.from_pretrained(base)((data_folder / "test.txt").read_text()).input_ids
    windows = torch.tensor(text[: 3 * 24]).view(3, 24)
    assert test["windows"] == 3 and test["split"] == "test"
    for name, model in {"dense": dense, "pruned": pruned_model, "recovered": loaded}.items():
        assert record.losses[name][0] == pytest.approx(window_losses(model, windows).tolist(), rel=1e-4)
        assert record.figures[0][1][name] == pytest.approx(float(window_losses(model, windows).mean().exp()), 1e-4)


def test_a_recovered_model_is_pushed(folder, base, data_folder, hub, tmp_path):
    recovery = make_recovery(folder, base, data_folder)
    with pytest.raises(FFPError, match=r"there is nothing to save yet; call recover\(\) first"):
        recovery.push_to_hub("me/recovered")
    recovery.recover()
    recovery.push_to_hub("me/recovered", commit_message="Recovered")
    recovery.save_pretrained(tmp_path / "out")
    repository, saved = hub.repositories["me/recovered"], contents(tmp_path / "out")
    pushed = repository.at("main").files
    assert pushed.keys() - {".gitattributes"} == saved.keys()
    assert {name for name in saved if pushed[name] != saved[name]} == {"README.md"}


def test_the_training_is_logged_beside_the_search(folder, base, data_folder, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config = RecoveryConfig(dataset=str(data_folder), **SETTINGS)
    recovery = FFPRecovery.from_pretrained(folder, config, base, "work", "tensorboard", device="cpu")
    record = recovery.recover()
    recovery.save_pretrained("out")
    (events,) = (tmp_path / "runs" / f"{folder.name}-recovered").glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"eval/kl") == len(record.curve) and b"train/loss" in events.read_bytes()


def test_a_model_in_bfloat16_stays_so_where_nothing_computes_in_it(folder, base, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.utils.precision._cpu_multiplies", lambda dtype: False)
    copytree(folder, tmp_path / "pruned")
    FFPModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "pruned")
    recovery = make_recovery(tmp_path / "pruned", base, data_folder)
    record = recovery.recover()
    assert record.dtype == "bfloat16" and record.compute_dtypes == {"dense": "float32", "pruned": "float32"}
    recovery.save_pretrained(tmp_path / "recovered")
    saved = load_file(tmp_path / "recovered" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}


def test_figures_are_not_said_to_be_computed_in_what_the_training_is(folder, base, data_folder):
    """The training converts the dense model after it was measured."""
    record = make_recovery(folder, base, data_folder, bf16=True).recover()
    assert record.bf16 and record.compute_dtypes == {"dense": "float32", "pruned": "float32"}


@pytest.mark.parametrize("lora", [0, 2])
def test_computing_in_bfloat16_leaves_rotary_frequencies_as_they_are(folder, base, data_folder, tmp_path, lora):
    """Those of both models, in the training and after it: a saved model has none, and is loaded with exact ones."""
    if lora:
        pytest.importorskip("peft")
    copytree(folder, tmp_path / "pruned")
    FFPModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "pruned")
    recovery = make_recovery(tmp_path / "pruned", base, data_folder, bf16=True, lora=lora)
    exact = AutoModelForCausalLM.from_pretrained(base).model.rotary_emb.inv_freq
    seen = []
    loss = DistillationLoss.__call__

    def watch(self, *arguments, **options):
        seen.extend(one.model.rotary_emb.inv_freq.clone() for one in (self.student, self.teacher))
        return loss(self, *arguments, **options)

    with patch.object(DistillationLoss, "__call__", watch):
        recovery.recover()
    seen += [one.model.rotary_emb.inv_freq for one in (recovery.student, recovery.teacher)]
    assert len(seen) > 4 and all(torch.equal(one, exact) for one in seen)


def test_a_resumed_recovery_ends_with_the_same_weights(folder, base, data_folder, tmp_path, monkeypatch):
    make_recovery(folder, base, data_folder, tmp_path / "whole.work").recover()
    whole = make_recovery(folder, base, data_folder, tmp_path / "other.work")
    expected = whole.recover()

    class Stopped(Exception):
        pass

    def stop(self, *arguments):
        if self.state.global_step == 11:
            raise Stopped
        return training_step(self, *arguments)

    from optimum_ffp.recovery.trainer import RecoveryTrainer

    training_step = RecoveryTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", stop)
        with pytest.raises(Stopped):
            make_recovery(folder, base, data_folder, tmp_path / "work").recover()
    with pytest.raises(FFPError, match="contains the state of an earlier run; resume it"):
        make_recovery(folder, base, data_folder, tmp_path / "work").recover()
    with pytest.raises(FFPError, match="belongs to another run: config.seed was 0 and is 3"):
        make_recovery(folder, base, data_folder, tmp_path / "work", seed=3).recover(resume=True)
    resumed = make_recovery(folder, base, data_folder, tmp_path / "work")
    found = resumed.recover(resume=True)
    assert found.curve == expected.curve and found.losses == expected.losses
    weights = whole.student.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.student.state_dict().items())
    resumed.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "work").exists()


def test_text_of_several_kinds_is_reported_one_by_one(folder, base, data_folder, tmp_path):
    (tmp_path / "other").mkdir()
    for file in data_folder.iterdir():
        (tmp_path / "other" / file.name).write_text(" ".join(reversed(file.read_text().split())))
    mix = f"{data_folder}:0.5,{tmp_path / 'other'}:0.25,self:0.25"
    recovery = make_recovery(folder, base, mix, eval_dataset=f"{tmp_path / 'other'},{data_folder}")
    record = recovery.recover()
    assert [test["dataset"] for test in record.tests] == [str(tmp_path / "other"), str(data_folder)]
    assert record.passes.keys() == {str(data_folder), str(tmp_path / "other")}
    content = record.to_dict()
    assert content["perplexity"].keys() >= {"dense", "pruned", "recovered", "dataset"}
    assert len(content["other_texts"]) == 1


def test_the_teacher_must_be_known_and_have_the_same_tokens(folder, base, data_folder, tmp_path):
    with pytest.raises(FFPError, match=r"the dense model of .* is needed: .*; name it by --teacher"):
        make_recovery(folder, None, data_folder)
    for one in (make_tiny_model(), make_tokenizer()):
        one.save_pretrained(tmp_path / "other")
    words = tmp_path / "other" / "tokenizer.json"
    words.write_text(words.read_text().replace('"w9"', '"other"'))
    with pytest.raises(FFPError, match=r"the tokenizers of .* differ"):
        make_recovery(folder, tmp_path / "other", data_folder)
    make_tiny_model(vocab_size=130).save_pretrained(tmp_path / "larger")
    make_tokenizer().save_pretrained(tmp_path / "larger")
    with pytest.raises(FFPError, match="logits for 128 tokens, and the teacher for 130"):
        make_recovery(folder, tmp_path / "larger", data_folder)
    for path, sizes in {"deeper": {"num_hidden_layers": 4}, "wider": {"hidden_size": 48}}.items():
        make_tiny_model(**sizes).save_pretrained(tmp_path / path)
        make_tokenizer().save_pretrained(tmp_path / path)
        found = f"the teacher has {sizes.get('num_hidden_layers', 3)} of size {sizes.get('hidden_size', 32)} and"
        with pytest.raises(FFPError, match=f"hidden_weight compares .*: {found} the pruned model .* set it to 0"):
            make_recovery(folder, tmp_path / path, data_folder, hidden_weight=1.0)
        make_recovery(folder, tmp_path / path, data_folder, hidden_weight=0.0)


def test_what_was_not_pruned_is_refused(base, data_folder):
    with pytest.raises(FFPError, match="was not pruned by optimum-ffp"):
        make_recovery(base, base, data_folder)


def test_nothing_to_save_or_to_resume(folder, base, data_folder, tmp_path):
    recovery = make_recovery(folder, base, data_folder)
    with pytest.raises(FFPError, match="call recover"):
        recovery.save_pretrained(tmp_path / "out")
    with pytest.raises(FFPError, match="give FFPRecovery a work_folder"):
        recovery.recover(resume=True)


def test_memory_that_does_not_suffice_ends_in_one_line(folder, base, data_folder, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")

    recovery = make_recovery(folder, base, data_folder)
    monkeypatch.setattr("optimum_ffp.recovery.trainer.RecoveryTrainer.training_step", fail)
    with pytest.raises(FFPError, match=r"memory doesn't suffice for .*; choose .*gradient_checkpointing.*lora"):
        recovery.recover()


def test_a_recovered_model_can_be_recovered_again(folder, base, data_folder, tmp_path):
    for source, out in ((folder, tmp_path / "once"), (tmp_path / "once", tmp_path / "twice")):
        recovery = make_recovery(source, base, data_folder, learning_rate=3e-5)
        recovery.recover()
        recovery.save_pretrained(out)
    records = json.loads((tmp_path / "twice" / "ffp_config.json").read_text())["recovery"]
    assert len(records) == 2 and records[1]["curve"][0]["kl"] == pytest.approx(records[0]["kept"]["kl"], rel=1e-5)
    card = (tmp_path / "twice" / "README.md").read_text()
    assert card.count("## Pruning") == 1 and card.count("recovered\n") == 1 and card.count("![Divergence") == 2
    for text in ("## Recovery 1", "| dense | before this training |", "| dense | pruned | recovered |"):
        assert card.count(text) == 1


def test_a_loss_on_answers_without_any_is_told(folder, base, data_folder, caplog):
    record = make_recovery(folder, base, data_folder, loss_on="answers").recover()
    assert not record.answers and "has no effect: " in caplog.text and "has no conversations" in caplog.text


def test_a_training_of_one_step_trains(folder, base, data_folder):
    recovery = make_recovery(folder, base, data_folder, max_tokens=96, evaluations=1, learning_rate=1e-5)
    record = recovery.recover()
    assert record.curve[-1]["step"] == 1 and record.kept["kl"] < record.curve[0]["kl"]


def test_too_few_held_out_windows_are_called_so(folder, base, data_folder, caplog):
    make_recovery(folder, base, data_folder, held_out_samples=1000).recover()
    assert "of the 1000 held-out windows of 24 tokens" in caplog.text


def test_windows_that_are_trained_on_are_counted(folder, base, data_folder, caplog):
    assert make_recovery(folder, base, data_folder).recover().repeated == {}
    record = make_recovery(folder, base, data_folder, eval_dataset=str(data_folder / "train.txt")).recover()
    assert record.repeated == {"test": record.tests[0]["windows"]}
    assert "test windows repeat text that is trained on; their figures are too good" in caplog.text

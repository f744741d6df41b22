"""`optimum-cli ffp recover`, as a user types it."""

import json
import shutil
from argparse import Namespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.commands.arguments import output_name
from optimum_ffp.commands.recover import LOAD_OPTIONS
from optimum_ffp.commands.recover_options import OPTIONS
from optimum_ffp.config import RecoveryConfig
from optimum_ffp.utils.resume import Journal
from tests.helpers import FILES, contents


SIZES = ["--max-tokens", "1k", "--batch-tokens", "96", "--seq-len", "24", "--held-out-samples", "4"]
SIZES += ["--eval-samples", "3", "--eval-seq-len", "24"]


@pytest.fixture
def recover(run_ffp, pruned, folder, data_folder, tmp_path):
    """Runs the command on a pruned model and its teacher."""

    def run(*words, out=tmp_path / "out", model=folder):
        teacher = ["--teacher", pruned[0].model_id, "--device", "cpu"]
        return run_ffp(
            "recover", "-m", model, *([out] if out else []), "--dataset", data_folder, *teacher, *SIZES, *words
        )

    return run


def test_every_option_is_documented_and_passed_on():
    assert OPTIONS.keys() == set(RecoveryConfig.option_names())
    assert not set(LOAD_OPTIONS) & OPTIONS.keys()


def test_a_model_is_recovered_and_told_of(recover, tmp_path, folder):
    code, output, errors = recover("--evaluations", "2", "--seed", "5")
    assert code == 0, errors
    assert contents(tmp_path / "out").keys() == FILES | {"recovery.png"} and not list(tmp_path.glob("*.work"))
    (record,) = json.loads((tmp_path / "out" / "ffp_config.json").read_text())["recovery"]
    assert record["options"]["seed"] == 5 and len(record["curve"]) in (3, 4)
    told = output[output.index("trained on") :]
    for text in (
        f"1,056 tokens of {record['options']['dataset']}",
        "11 of 4 windows of 24 tokens",
        f"{record['curve'][0]['kl']:.4f} -> {record['kept']['kl']:.4f} nats per token",
        *(f"perplexity, {name}" for name in ("dense", "pruned", "recovered")),
        f"{record['perplexity']['recovered']:.4f}",
        "4,224, in forward passes of a model",
        "saved in",
    ):
        assert text in told, text
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "out"))
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)


def test_the_output_has_a_name_of_its_own(recover, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recover(out=None)[0] == 0
    assert (tmp_path / "tiny ffp-recovered" / "model.safetensors").is_file()
    monkeypatch.chdir(folder)
    code, output, _ = recover("--plan", out=None, model=".")
    assert code == 0 and output
    assert output_name(Namespace(output=None, model=".")) == output_name(Namespace(output=None, model="a/../tiny ffp"))


def test_a_model_without_its_record_is_refused_before_it_is_trained(recover, folder, tmp_path):
    FFPModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    code, _, errors = recover(model=tmp_path / "again")
    assert code == 2 and "has no record of its pruning, or it can't be reached; copy ffp_config.json from" in errors


def test_what_is_missing_is_said_before_the_training(recover, monkeypatch):
    monkeypatch.setattr("optimum_ffp.config.recovery.find_spec", lambda name: None)
    code, _, errors = recover("--lora", "2", "--plan")
    assert code == 2 and "error: adapters need the peft package: pip install peft" in errors


def test_a_disk_that_is_full_ends_the_training_in_one_line(recover, monkeypatch):
    from optimum_ffp.recovery.trainer import RecoveryTrainer

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecoveryTrainer, "_save_checkpoint", full)
    code, _, errors = recover()
    assert code == 2 and "Traceback" not in errors
    assert "the training stopped: [Errno 28] No space left on device; if the disk is full make room, then" in errors


def test_adapters(recover, tmp_path):
    pytest.importorskip("peft")
    code, output, errors = recover("--lora", "4", "--keep-adapter")
    assert code == 0, errors
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert "LoRA adapters of rank 4 were trained and merged" in (tmp_path / "out" / "README.md").read_text()


def test_options_of_a_file(recover, tmp_path):
    pytest.importorskip("peft")
    path = tmp_path / "options.json"
    path.write_text('{"lora": 4, "max_tokens": "5M", "seq_len": 32}')
    code, output, errors = recover("--config", path, "--keep-adapter", "--plan")
    assert code == 0, errors
    # Those of the command line count.
    assert "at most 4,224" in output
    path.write_text('{"temperature": 0}')
    code, _, errors = recover("--config", path)
    assert code == 2 and "error: temperature must be a number of at least 0.1, found 0" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep-adapter"], "these options have no effect: --keep-adapter (used only with --lora)"),
        (["--revision", "abc"], "these options have no effect: --revision (used only with a --model on the Hub)"),
        (["--private"], "these options have no effect: --private (used only with --push-to-hub)"),
        (["--max-tokens", "many"], "a number of tokens is written as 400k, 2M, 1.5B or 2000000; found 'many'"),
        (["--temperature", "0"], "temperature must be a number of at least 0.1, found 0.0"),
        (["--teacher", "/nowhere"], "there is no folder '/nowhere'"),
        (["--eval-seq-len", "65"], "eval_seq_len 65 is more than the 64 positions that the model knows; lower it"),
        (["--seq-len", "65"], "seq_len 65 is more than the 64 positions that the model knows; lower it"),
        (["--report-to", "mlflow"], "report_to 'mlflow' is not known"),
        (["--num-processes", "0"], "num_processes must be at least 1, found 0"),
    ],
)
def test_a_users_mistake_ends_in_one_line(recover, tmp_path, words, message):
    code, _, errors = recover(*words)
    assert code == 2 and [line for line in errors.splitlines() if "error: " in line][-1].startswith("error: ")
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["--plan"]])
def test_quantised_models_are_refused(recover, tmp_path, folder, pruned, words):
    """Either would be quantised once more where it is converted."""
    for name, source in (("teacher", pruned[0].model_id), ("student", folder)):
        shutil.copytree(source, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    message = "is quantised; name the model in full precision that it was made from"
    code, _, errors = recover(*words, "--teacher", tmp_path / "teacher")
    assert code == 2 and f"{tmp_path / 'teacher'} {message}" in errors
    code, _, errors = recover(*words, model=tmp_path / "student")
    assert code == 2 and f"{tmp_path / 'student'} {message}" in errors


def test_what_exists_is_not_replaced(recover, tmp_path, folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is not a checkpoint of optimum-ffp and is never replaced" in recover()[2]
    code, _, errors = recover(out=folder)
    assert code == 2 and "is an input of this command" in errors
    assert recover(out=tmp_path / "new")[0] == 0
    assert "exists; name another folder, or give --overwrite" in recover(out=tmp_path / "new")[2]
    assert recover("--overwrite", out=tmp_path / "new")[0] == 0


def test_an_interrupted_command_goes_on(recover, tmp_path, monkeypatch):
    from optimum_ffp.recovery.trainer import RecoveryTrainer

    assert recover(out=tmp_path / "whole")[0] == 0
    training_step = RecoveryTrainer.training_step

    def interrupt(self, *arguments):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", interrupt)
        code, _, errors = recover()
    assert code == 130 and "run the same command with --resume to continue" in errors
    code, _, errors = recover("--resume", "--seed", "7")
    assert code == 2 and "config.seed was 0 and is 7" in errors
    assert recover("--resume")[0] == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1] and not list(tmp_path.glob("*.work"))


def test_a_recovery_that_was_killed_after_it_was_saved_ends(recover, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", Mock(side_effect=KeyboardInterrupt))
        assert recover()[0] == 130
    written = contents(tmp_path / "out")
    assert "contains the state of an earlier run; resume it with --resume" in recover()[2]
    code, _, errors = recover("--resume")
    assert code == 0, errors
    assert contents(tmp_path / "out")["model.safetensors"] == written["model.safetensors"]
    assert not list(tmp_path.glob("*.work"))


def test_the_result_is_uploaded(recover, tmp_path, hub):
    code, output, errors = recover("--push-to-hub", "--hub-model-id", "me/recovered")
    assert code == 0, errors
    assert "uploaded: " in output and "recovery.png" in hub.repositories["me/recovered"].at("main").files


def test_a_plan_is_printed_before_anything_is_loaded(recover, tmp_path, folder, pruned):
    code, output, errors = recover("--plan", "--num-processes", "2")
    assert code == 0, errors
    assert "at most 4,224" in output and "warning" not in output and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    code, output, _ = recover("--plan", "--eval-dataset", tmp_path / "nothing.txt")
    assert code == 2 and "problem: there is no file or folder" in output and "out exists" in output
    code, _, errors = recover("--plan", model=pruned[0].model_id)
    assert code == 2 and "was not pruned by optimum-ffp" in errors
    code, _, errors = recover("--plan", model=tmp_path / "nothing")
    assert code == 2 and "there is no folder" in errors


def test_finished_work_is_not_discarded_without_being_told(recover, tmp_path, monkeypatch):
    from optimum_ffp.recovery.trainer import RecoveryTrainer

    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", interrupt)
        assert recover()[0] == 130
    assert "contains the state of an earlier run; resume it with --resume" in recover()[2]
    assert recover("--overwrite")[0] == 0

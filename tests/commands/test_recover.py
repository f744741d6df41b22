"""`optimum-cli ffp recover`, as a user types it."""

import json
import shutil
from argparse import Namespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM
from optimum_ffp.commands.arguments import output_name
from optimum_ffp.commands.prune import plan_recoveries, read_recovery
from optimum_ffp.commands.recover import LOAD_OPTIONS
from optimum_ffp.commands.recover_options import OPTIONS
from optimum_ffp.options import read_mix
from optimum_ffp.planning.machine import Machine
from optimum_ffp.recovery.config import RecoveryConfig
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
    monkeypatch.setattr("optimum_ffp.recovery.config.find_spec", lambda name: None)
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
    assert "11 of 4 windows of 24 tokens" in output
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
        (["--eval-seq-len", "65", "--plan"], "eval_seq_len 65 is more than the 64 positions"),
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
    assert "1,056, which count as 4,224" in output and "11 of 4 windows of 24 tokens" in output
    assert "it fits into memory" in output and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    code, output, _ = recover("--plan", "--eval-dataset", tmp_path / "nothing.txt")
    assert code == 2 and "problem: there is no file or folder" in output and "out exists" in output
    code, _, errors = recover("--plan", model=pruned[0].model_id)
    assert code == 2 and "was not pruned by optimum-ffp" in errors
    code, _, errors = recover("--plan", model=tmp_path / "nothing")
    assert code == 2 and "there is no folder" in errors


@pytest.fixture
def prune(run_ffp, save_tiny_model, data_folder, tmp_path):
    pruned_model = save_tiny_model()

    def run(*words, model=pruned_model):
        sizes = ["--num-samples", "8", "--search-samples", "2", "--eval-samples", "3", "--search-steps", "6"]
        options = ["--seq-len", "24", "--dataset", data_folder, *sizes, "--device", "cpu", "--calibration", "ridge"]
        return run_ffp("prune", "-m", model, tmp_path / "out", *options, *words)

    return run


def test_a_model_is_pruned_and_recovered_in_one_go(prune, tmp_path, data_folder):
    code, output, errors = prune("--recover", "1k", "--seed", "4")
    assert code == 0, errors
    assert output.count("saved in") == 2 and not list(tmp_path.glob("*.work"))
    (record,) = json.loads((tmp_path / "out-recovered" / "ffp_config.json").read_text())["recovery"]
    assert (
        record["options"] | {"dataset": data_folder.name, "seq_len": 24, "eval_seq_len": 24, "seed": 4}
        == record["options"]
    )
    assert contents(tmp_path / "out-recovered").keys() == contents(tmp_path / "out").keys() | {"recovery.png"}
    assert "exists; name another folder" in prune("--recover", "1k")[2]


def test_the_recovery_after_a_prune_has_its_share_of_the_models_own_text():
    args = Namespace(recover="1k", device_map=None)
    found = read_recovery(args, FFPConfig(dataset="c4", self_share=0.2, seq_len=24))
    assert read_mix(found.dataset) == {"c4": 0.8, "self": 0.2}
    assert read_recovery(args, FFPConfig(dataset="c4", seq_len=24)).dataset == "c4"


def test_the_plan_of_a_prune_has_the_recovery(prune, tmp_path):
    (tmp_path / "out-recovered").mkdir()
    code, output, errors = prune("--recover", "1k", "--plan")
    assert code == 2 and not errors.count("Traceback")
    assert "tokens, statistics" in output and "1,008, which count as 4,032 in forward passes" in output
    assert "out-recovered exists" in output and not (tmp_path / "out").exists()
    code, output, _ = prune("--recover", "1k", "--plan", "--sparsity", "0.1", "0.2")
    assert output.count("tokens, recovery") == 2


def test_what_a_recovery_cannot_run_on_is_refused_before_the_prune(prune, run_ffp, tmp_path, monkeypatch):
    words = ["-m", tmp_path / "tiny-llama", tmp_path / "out", "--recover", "1k", "--device-map", "auto"]
    code, _, errors = run_ffp("prune", *words)
    assert code == 2 and "--recover trains on one device of each process; leave out --device-map" in errors
    machine = Machine(torch.device("cuda", 1), 2**40, 2**40)
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_machine", lambda device: machine)
    monkeypatch.setattr("optimum_ffp.planning.recovery.measure_speed", lambda device, dtype: 1e9)
    code, output, _ = prune("--recover", "1k", "--plan")
    assert code == 2 and "problem: training is on the first visible device, found cuda:1; leave out device" in output
    code, _, errors = prune("--recover", "1k")
    assert code == 2 and "error: training is on the first visible device, found cuda:1" in errors
    assert not (tmp_path / "out").exists()


def test_the_plan_of_a_recovery_is_for_the_dtype_of_the_prune(save_tiny_model):
    config = AutoConfig.from_pretrained(save_tiny_model(), dtype="bfloat16")
    results = []
    for dtype in ("auto", "float32"):
        args = Namespace(device="cpu", dtype=dtype)
        (plan,) = plan_recoveries(
            args, RecoveryConfig(dataset="c4", max_tokens="1k"), config, {"out": 0.2}, 1
        ).values()
        results.append(plan.result)
    assert results[1] == 2 * results[0]


def test_a_plan_of_what_is_pruned_already_trains_nothing(prune, tmp_path):
    assert prune()[0] == 0
    assert prune("--recover", "1k", "--resume", "--plan")[1].count("tokens, recovery") == 1
    assert not (tmp_path / "out-recovered").exists()


def test_a_recovery_after_a_prune_goes_on(prune, tmp_path, monkeypatch):
    from optimum_ffp.recovery.trainer import RecoveryTrainer

    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    (tmp_path / "out-recovered").mkdir()
    code, _, errors = prune("--recover", "1k")
    assert code == 2 and "out-recovered exists" in errors and not (tmp_path / "out").exists()
    (tmp_path / "out-recovered").rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", interrupt)
        assert prune("--recover", "1k")[0] == 130
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    code, output, errors = prune("--recover", "1k", "--resume")
    assert code == 0, errors
    assert output.count("saved in") == 1 and (tmp_path / "out-recovered" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written


def test_a_recovery_after_a_prune_that_was_killed_after_it_was_saved(prune, tmp_path, monkeypatch):
    remove = Journal.remove

    def kill(self):
        if self.folder.name == "out-recovered.work":
            raise KeyboardInterrupt
        remove(self)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", kill)
        assert prune("--recover", "1k")[0] == 130
    assert [folder.name for folder in tmp_path.glob("*.work")] == ["out-recovered.work"]
    code, output, errors = prune("--recover", "1k", "--resume")
    assert code == 0 and "out-recovered is there already" in output, errors
    assert not list(tmp_path.glob("*.work"))


def test_recoveries_of_a_sweep_go_on(prune, tmp_path, monkeypatch):
    from optimum_ffp.recovery.recovery import FFPRecovery

    words = ["--recover", "1k", "--sparsity", "0.1", "0.2"]
    with monkeypatch.context() as patch:
        patch.setattr(FFPRecovery, "recover", Mock(side_effect=KeyboardInterrupt))
        assert prune(*words)[0] == 130
    code, output, errors = prune(*words, "--resume")
    assert code == 0, errors
    assert output.count("saved in") == 2 and len([*tmp_path.glob("out-ffp-*-recovered")]) == 2


def test_what_another_run_has_made_is_not_taken_for_finished(prune, tmp_path, save_tiny_model):
    assert prune("--recover", "1k")[0] == 0
    before = contents(tmp_path / "out-recovered")
    code, output, errors = prune("--recover", "1k", "--resume")
    assert code == 0 and output.endswith("out-recovered is there already, with these options\n")
    assert contents(tmp_path / "out-recovered") == before
    # Another model.
    assert "exists; name another folder" in prune("--recover", "1k", "--resume", model=save_tiny_model("qwen3"))[2]
    # Other options, of the prune or of the recovery.
    assert "exists; name another folder" in prune("--recover", "1k", "--resume", "--sparsity", "0.3")[2]
    assert "exists; name another folder" in prune("--recover", "2k", "--resume")[2]


def test_a_recovery_that_fails_does_not_stop_the_others(prune, tmp_path, monkeypatch):
    from optimum_ffp.recovery.recovery import FFPRecovery

    recover, folder = FFPRecovery.recover, tmp_path / "out-ffp-10"

    def fail(self, **options):
        if self.source == str(folder):
            raise FFPError("the training has gained nothing")
        return recover(self, **options)

    monkeypatch.setattr(FFPRecovery, "recover", fail)
    code, output, errors = prune("--recover", "1k", "--sparsity", "0.1", "0.2")
    assert code == 2 and f"error: {folder}-recovered: the training has gained nothing" in errors
    assert (tmp_path / "out-ffp-20-recovered").is_dir() and not (tmp_path / "out-ffp-10-recovered").exists()


def test_finished_work_is_not_discarded_without_being_told(recover, tmp_path, monkeypatch):
    from optimum_ffp.recovery.trainer import RecoveryTrainer

    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", interrupt)
        assert recover()[0] == 130
    assert "contains the state of an earlier run; resume it with --resume" in recover()[2]
    assert recover("--overwrite")[0] == 0

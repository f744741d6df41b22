"""`optimum-cli ffp recover`, as a user types it."""

import json
import shlex
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.compression.training.trainer import DistillationTrainer
from optimum_ffp.utils.resume import Journal
from tests.helpers import CHECKPOINT_FILES, read_files


SIZES = ["--max-tokens", "500", "--batch-tokens", "96", "--seq-len", "24", "--eval-samples", "3", "--device", "cpu"]


@pytest.fixture
def recover(run_ffp, pruned, folder, data_folder, tmp_path):
    """Runs the command on a pruned model and its teacher."""
    config = tmp_path / "options.json"
    config.write_text('{"evaluations": 2, "held_out_samples": 4, "seq_len": 32}')

    def run(*words, out=tmp_path / "out", model=folder):
        # Options of the command line count, not those of the file.
        options = ["--dataset", data_folder, "--teacher", pruned[0].model_id, "--config", config]
        return run_ffp("recover", "-m", model, *([out] if out else []), *options, *SIZES, *words)

    return run


def test_recover_writes_checkpoint_and_prints_summary(recover, run_ffp, tmp_path, folder, data_folder, monkeypatch):
    code, output, errors = recover("--seed", "5", "--log-level", "debug", "--json", tmp_path / "out.json")
    assert code == 0, errors
    assert read_files(tmp_path / "out").keys() == CHECKPOINT_FILES | {"recovery-1.png"}
    assert not list(tmp_path.glob("*.work"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".pt", ".pth")]
    (record,) = json.loads((tmp_path / "out" / "ffp_config.json").read_text())["recovery"]
    assert record["options"]["seed"] == 5 and len(record["curve"]) == 3
    assert "trained_tokens" in errors and str(record["kept"]["kl"]) in errors
    records = json.loads((tmp_path / "out.json").read_text())
    for role, found in zip(("recovered", "pruned", "dense"), records, strict=True):
        assert found["role"] == role and f"{role} {record['perplexity'][role]:.2f}" in output
        assert found[f"perplexity/./{data_folder.name}"] == record["perplexity"][role]
    assert records[0]["weight_bytes"] == records[1]["weight_bytes"] < records[2]["weight_bytes"]
    command = shlex.split(output.splitlines()[-1])[4:]
    assert run_ffp(*command, "--no-speed", "--eval-samples", "2", "--device", "cpu")[0] == 0
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "out"))
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)
    code, again, _ = recover("--seed", "5", "--resume", "--json", tmp_path / "again.json")
    assert code == 0 and again.splitlines()[1:] == output.splitlines() and "finished" in again
    assert json.loads((tmp_path / "again.json").read_text()) == records
    # Another model has taken the place of the one that was recovered.
    with monkeypatch.context() as patch:
        patch.setattr("optimum_ffp.hub.record.require_record", lambda *_, **__: SimpleNamespace(to_dict=dict))
        assert "--overwrite" in recover("--seed", "5", "--resume")[2]
    # What exists is replaced on demand alone.
    assert "--overwrite" in recover()[2]
    assert recover("--overwrite")[0] == 0


@pytest.mark.slow
def test_default_output_folder_name(recover, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recover(out=None)[0] == 0
    assert (tmp_path / "tiny ffp-recovered" / "model.safetensors").is_file()


@pytest.mark.slow
def test_lora_adapters_are_merged_and_uploaded(recover, hub):
    pytest.importorskip("peft")
    # Few tokens teach adapters nothing that holds on other text.
    upload = ("--push-to-hub", "--hub-model-id", "me/recovered")
    code, output, errors = recover("--lora", "4", "--max-tokens", "5k", "--learning-rate", "1e-4", *upload)
    assert code == 0, errors
    files = hub.repositories["me/recovered"].at("main").files
    assert "uploaded: " in output and "recovery-1.png" in files
    assert b"LoRA adapters of rank 4 were trained and merged" in files["README.md"]


@pytest.mark.slow
def test_interrupted_recovery_resumes_to_identical_weights(recover, tmp_path, monkeypatch):
    assert recover(out=tmp_path / "whole")[0] == 0
    training_step = DistillationTrainer.training_step

    def interrupt(self, *arguments):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", interrupt)
        code, _, errors = recover()
    assert code == 130 and "--resume" in errors
    code, _, errors = recover("--resume", "--seed", "7")
    assert code == 2 and "seed" in errors
    assert "--resume" in recover()[2]
    # Killed once more, after the result was written.
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", Mock(side_effect=KeyboardInterrupt))
        assert recover("--resume")[0] == 130
    assert recover("--resume")[0] == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1] and not list(tmp_path.glob("*.work"))


@pytest.mark.slow
def test_full_disk_during_training_is_one_line_error(recover, monkeypatch):
    full = Mock(side_effect=RuntimeError("No space left on device"))
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", full)
    code, _, errors = recover()
    assert code == 2 and "Traceback" not in errors and "No space left" in errors and "--resume" in errors


@pytest.mark.slow
def test_recovery_without_improvement_writes_nothing(recover, tmp_path):
    code, _, errors = recover("--learning-rate", "100")
    assert code == 3 and "divergence" in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.work"))


def test_recovery_plan_is_printed_and_lists_problems(recover, tmp_path, pruned):
    code, output, errors = recover("--plan", "--json", tmp_path / "plan.json")
    assert code == 0, errors
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["tokens"] == 2304 and plan["needed_bytes/disk"] < plan["available_bytes/disk"]
    assert 0 < plan["min_seconds"] < plan["max_seconds"]
    assert "2,304" in output and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    code, output, _ = recover("--plan", "--eval-dataset", tmp_path / "nothing.txt")
    assert code == 2 and "nothing.txt" in output and "out exists" in output


def test_unusable_models_and_outputs_are_rejected(recover, tmp_path, folder, pruned, monkeypatch):
    for name, source in (("teacher", pruned[0].model_id), ("student", folder)):
        shutil.copytree(source, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    FFPModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    for options, word in (
        ({"model": tmp_path / "again"}, "ffp_config.json"),
        ({"model": tmp_path / "student"}, "quanti"),
        ({"model": tmp_path / "nothing"}, "nothing"),
        ({"out": folder}, "input"),
        ({"out": tmp_path / "mine"}, "mine.txt"),
    ):
        code, _, errors = recover(**options)
        assert code == 2 and word in errors
    code, _, errors = recover("--teacher", tmp_path / "teacher")
    assert code == 2 and "quanti" in errors
    monkeypatch.setattr("optimum_ffp.config.training.find_spec", lambda name: None)
    code, _, errors = recover("--lora", "2", "--plan")
    assert code == 2 and "pip install peft" in errors

import json
import re
import shutil

import pytest
from huggingface_hub import constants

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.planning.preflight import check_disk, check_repositories
from tests.helpers import make_text


FAST = ["--device", "cpu", "--seq-len", "24", "--num-samples", "8", "--search-samples", "2", "--eval-samples", "3"]
GIB = 2**30


def test_plan_needs_only_config_json_and_writes_nothing(run_ffp, save_tiny_model, data_folder, tmp_path):
    model = save_tiny_model()
    for file in model.iterdir():
        if file.name != "config.json":
            file.unlink()
    before = sorted(tmp_path.rglob("*"))
    words = ["--dataset", data_folder, "--plan", "--sparsity", 0.2, 0.3]
    code, output, errors = run_ffp("prune", "-m", model, tmp_path / "out", *FAST, *words)
    assert code == 0 and "error" not in errors
    assert "host memory" in output and "at most" in output and "problem: " not in output
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_in_python_prints_what_command_prints(run_ffp, save_tiny_model, data_folder, tmp_path):
    model = save_tiny_model()
    (model / "model.safetensors").unlink()
    _, output, _ = run_ffp("prune", "-m", model, tmp_path / "out", *FAST, "--dataset", data_folder, "--plan")
    sizes = {"seq_len": 24, "num_samples": 8, "search_samples": 2, "eval_samples": 3}
    plan = FFPPruner.plan(model, FFPConfig(dataset=str(data_folder), **sizes), device="cpu")
    # Memory may be allocated between the two, the speed is measured, and a plan in Python has no output folder.
    varying = r", [^,]* available|[\d,]+ to [\d,]+ \w+"
    printed, expected = (re.sub(varying, "", text.strip()) for text in (str(plan), output))
    assert printed == expected and f"{plan.tokens:,}" in output and plan.calibration in output


def test_plan_lists_every_blocking_problem(run_ffp, save_tiny_model, tmp_path, monkeypatch):
    model, out = save_tiny_model(), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    words = ["--dataset", f"{tmp_path / 'none.txt'}:0.5,no.jsonl:0.5", "--plan"]
    code, output, _ = run_ffp("prune", "-m", model, out, *FAST, *words)
    problems = [line for line in output.splitlines() if line.startswith("problem: ")]
    assert code == 2
    for problem, word in zip(problems, ("exists", "disk", "none.txt", "no.jsonl"), strict=True):
        assert word in problem


def test_plan_counts_windows_that_local_text_fills(run_ffp, save_tiny_model, tmp_path):
    model, text = save_tiny_model(), tmp_path / "text.txt"
    words = ["-m", model, tmp_path / "out", "--dataset", text, *FAST, "--plan", "--json", tmp_path / "plan.json"]
    words += ["--num-samples", 40, "--method", "uniform", "--calibration", "ridge"]
    plans = {}
    for size in (10_000, 500):
        text.write_text(make_text(size, 0))
        code, output, errors = run_ffp("prune", *words)
        assert code == 0, errors
        (plans[size],) = json.loads((tmp_path / "plan.json").read_text())
        assert plans[size]["text"] in output
    # Of 500 words, 60 % are to calibrate on.
    assert "fills 12 of 40 windows" in plans[500]["text"] and "fills 40 of 40" in plans[10_000]["text"]
    assert plans[500]["tokens"] < plans[10_000]["tokens"] / 2
    text.write_text("w1 " * 30)
    code, output, _ = run_ffp("prune", *words)
    assert code == 2 and "problem: " in output and "less than one window" in output


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--dataset", "nowhere.txt"], "nowhere.txt"),
        (["--sparsity", "0.95"], "can't be met"),
        (["--push-to-hub", "--hub-model-id", "org/theirs"], "org/theirs"),
    ],
)
def test_prune_fails_before_loading_model(
    run_ffp, hub, save_tiny_model, data_folder, tmp_path, monkeypatch, words, word
):
    monkeypatch.setattr("optimum_ffp.pruner.load_dense", None)
    command = ["prune", "-m", save_tiny_model(), tmp_path / "out", *FAST, "--dataset", data_folder]
    code, _, errors = run_ffp(*command, *words)
    assert code == 2 and word in errors and not (tmp_path / "out").exists()


def test_disk_check_counts_files_already_in_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2 * GIB, GIB, GIB))
    work = tmp_path / "work"
    check_disk(tmp_path / "not" / "yet" / "there", GIB, work)
    with pytest.raises(FFPError, match="disk"):
        check_disk(tmp_path / "out", GIB + 500, work)
    work.mkdir()
    (work / "statistics.safetensors").write_bytes(b"x" * 600)
    check_disk(tmp_path / "out", GIB + 500, work)


def test_hub_token_is_checked_once_for_all_repositories(hub, monkeypatch):
    check_repositories(["mine", "me/mine"])
    check_repositories([])
    assert [path for _, path, _ in hub.requests].count("/api/whoami-v2") == 1
    with pytest.raises(FFPError, match="401"), monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        check_repositories(["me/mine"])
    answer = {"name": "me", "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: answer)
    with pytest.raises(FFPError, match="write access"):
        check_repositories(["me/mine"])


def test_unavailable_hub_is_only_a_warning(hub, caplog):
    hub.faults.append(("GET", "/api/whoami-v2", 503, "Service Unavailable"))
    check_repositories(["me/mine"])
    assert "503" in caplog.text


def test_upload_in_offline_mode_is_rejected(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_ofThePlan")
    with pytest.raises(FFPError, match="offline"):
        check_repositories(["me/mine"])

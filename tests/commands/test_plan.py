import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from optimum_ffp import FFPError
from optimum_ffp.planning.plan import GIB
from optimum_ffp.planning.preflight import check_dataset, check_disk, check_repositories
from optimum_ffp.utils.resume import Journal
from tests.hub_server import run_hub


SIZES = {"seq-len": 24, "num-samples": 8, "search-samples": 2, "eval-samples": 3}
FAST = ["--device", "cpu", *(word for name, value in SIZES.items() for word in (f"--{name}", str(value)))]
TOKEN = "hf_ofThePlan"


@pytest.fixture
def run(run_ffp):
    def run(*words):
        # A policy that takes no search reads nothing of it.
        searches = [] if "uniform" in words else ["--search-steps", 10]
        return run_ffp("prune", *FAST, *searches, *words)

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process speaks to."""
    with run_hub(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


def test_a_plan_needs_a_config_alone_and_writes_nothing(run, save_tiny_model, data_folder, tmp_path):
    model = save_tiny_model()
    for file in model.iterdir():
        if file.name != "config.json":
            file.unlink()
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = run(
        "-m", model, tmp_path / "out", "--dataset", data_folder, "--plan", "--sparsity", 0.2, 0.3
    )
    assert code == 0 and "error" not in errors
    assert f"model                   {model}: " in output and "20.00%, 30.00%" in output and "it fits" in output
    assert "problem: " not in output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_plan_names_all_that_would_stop_the_prune(run, save_tiny_model, tmp_path, monkeypatch):
    model, out = save_tiny_model(), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    code, output, _ = run("-m", model, out, "--dataset", tmp_path / "none.txt", "--plan")
    assert code == 2
    problems = [line for line in output.splitlines() if line.startswith("problem: ")]
    for problem, words in zip(
        problems, ("exists; name another folder", "0.00 GiB of free disk", "there is no file"), strict=True
    ):
        assert words in problem
    # What a prune that was killed has left is looked at and stays.
    work = tmp_path / "out.work"
    Journal.open(work, {}, resume=False).value("x", lambda: 1)
    code, output, _ = run("-m", model, out, "--dataset", tmp_path / "none.txt", "--plan")
    assert "problem: " in output and "contains the state of an earlier run" in output
    code, output, _ = run("-m", model, out, "--dataset", tmp_path / "none.txt", "--plan", "--overwrite")
    assert code == 2 and "exists; name" not in output and work.is_dir()


def test_a_model_that_can_not_be_pruned_has_no_plan(run, save_tiny_model, data_folder, tmp_path):
    code, output, errors = run("-m", save_tiny_model(), "--dataset", data_folder, "--plan", "--sparsity", 0.95)
    assert code == 2 and output == "" and "can't be met" in errors
    code, _, errors = run("-m", tmp_path / "nowhere", "--plan")
    assert code == 2 and "there is no folder" in errors


def test_a_prune_is_stopped_before_it_loads_anything(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.pruner.load_dense", None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", "--dataset", data_folder)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and "has 0.00 GiB of free disk" in line and "make room" in line


@pytest.mark.slow
def test_too_little_memory_is_a_warning_in_one_line(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": -(2**40), "total": 2**40}))
    words = ["--dataset", data_folder, "--method", "uniform"]
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", *words)
    (line,) = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert code == 0 and "memory may not suffice" in line and (tmp_path / "out" / "config.json").is_file()


def test_what_is_written_already_needs_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2 * GIB, GIB, GIB))
    work = tmp_path / "work"
    check_disk(tmp_path / "not" / "yet" / "there", GIB, work)
    with pytest.raises(FFPError, match="name a folder on another disk"):
        check_disk(tmp_path / "out", GIB + 500, work)
    work.mkdir()
    (work / "statistics.safetensors").write_bytes(b"x" * 600)
    check_disk(tmp_path / "out", GIB + 500, work)
    # The checkpoint is never among what is written already.
    check_disk(tmp_path / "out", GIB + 500, work, GIB)
    with pytest.raises(FFPError, match="name a folder on another disk"):
        check_disk(tmp_path / "out", GIB + 500, work, GIB + 1)


def test_data_that_is_not_there(data_folder, tmp_path):
    check_dataset(str(data_folder))
    check_dataset(str(data_folder / "train.txt"))
    check_dataset("self")
    cases = {
        "empty.txt": "holds no text",
        "table.csv": "is not a .txt, .jsonl",
        "no.jsonl": "there is no file or folder",
    }
    (tmp_path / "empty.txt").touch()
    (tmp_path / "table.csv").write_text("a,b")
    for name, message in cases.items():
        with pytest.raises(FFPError, match=message):
            check_dataset(str(tmp_path / name if name != "no.jsonl" else "no.jsonl"))
    (data_folder / "test.txt").unlink()
    with pytest.raises(FFPError, match="has no test file"):
        check_dataset(str(data_folder))
    with pytest.raises(FFPError, match="'wikitext2' can't be read from the Hub .offline mode is on."):
        check_dataset("wikitext2")


def test_every_text_of_a_mix_is_looked_for(run, save_tiny_model, data_folder, tmp_path):
    words = ["--dataset", f"{data_folder}:0.5,no.txt:0.5", "--eval-dataset", "nowhere.jsonl", "--plan"]
    code, output, _ = run("-m", save_tiny_model(), tmp_path / "out", *words)
    problems = [line for line in output.splitlines() if line.startswith("problem: there is no file")]
    assert code == 2 and ["no.txt" in problems[0], "nowhere.jsonl" in problems[1]] == [True, True]


def test_the_hub_is_asked_once(hub):
    check_repositories(["mine", "me/mine"], TOKEN)
    check_repositories([])
    assert [path for _, path, _ in hub.requests].count("/api/whoami-v2") == 1
    with pytest.raises(FFPError, match="org/theirs isn't one that me may create or write to; choose an owner"):
        check_repositories(["org/theirs"], TOKEN)
    with pytest.raises(FFPError, match="the upload to me/mine would fail: 401 .*hf auth login"):
        check_repositories(["me/mine"], "hf_wrong")


def test_a_token_that_may_only_read(hub, monkeypatch):
    answer = {"name": "me", "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: answer)
    with pytest.raises(FFPError, match="may only read: give one with write access"):
        check_repositories(["me/mine"], TOKEN)


def test_a_hub_that_is_away_is_a_warning(hub, caplog):
    hub.fail("GET", "/api/whoami-v2", 503, "Service Unavailable")
    check_repositories(["me/mine"], TOKEN)
    assert "could not check whether the Hub accepts the upload: 503" in caplog.text


def test_offline_nothing_is_uploaded(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FFPError, match="nothing can be uploaded while offline mode is on"):
        check_repositories(["me/mine"], TOKEN)


def test_a_prune_asks_the_hub_before_it_loads_anything(run, hub, save_tiny_model, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.pruner.load_dense", None)
    words = ["--dataset", data_folder, "--push-to-hub", "--hub-model-id", "org/theirs"]
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", *words)
    assert code == 2 and "error: org/theirs isn't one that me may create" in errors
    assert not Path(tmp_path / "out").exists()

import json
import time

import pytest
import torch
from safetensors import SafetensorError

from optimum_ffp.errors import FFPError
from optimum_ffp.utils.profiling import StageMeter
from optimum_ffp.utils.resume import Journal, begin_work, fingerprint, has_written, run_id
from tests.helpers import make_tiny_model, write_record


def refuse() -> None:
    raise AssertionError("this was computed before")


def test_journal_entries_are_computed_once(tmp_path):
    journal = Journal.open(tmp_path / "work", {"seed": 0}, resume=False)
    losses = [0.1 + 0.2, float("nan"), float("inf"), 1e-300]
    matrix = torch.randn(3, 3)
    assert journal.value("losses", lambda: losses) is not losses
    journal.tensors("matrix", lambda: {"gram": matrix.T})

    again = Journal.open(tmp_path / "work", {"seed": 0}, resume=True)
    found = again.value("losses", refuse)
    assert json.dumps(found) == json.dumps(losses)
    assert torch.equal(again.tensors("matrix", refuse)["gram"], matrix.T)
    again.remove()
    assert not (tmp_path / "work").exists()


def test_journal_parts_do_not_share_entries(tmp_path):
    journal = Journal(tmp_path)
    assert [journal.part({"sparsity": s}).value("policy", lambda s=s: s) for s in (0.2, 0.3, 0.2)] == [0.2, 0.3, 0.2]
    assert journal.part(1).part(2).value("x", lambda: "inner") == "inner"
    assert journal.part(1).value("x", lambda: "outer") == "outer"


def test_reused_entry_brings_its_time(tmp_path):
    def work(seconds: float) -> dict[str, torch.Tensor]:
        time.sleep(seconds)
        return {"result": torch.ones(1)}

    def run(meter: StageMeter) -> None:
        journal = Journal.open(tmp_path / "work", {}, resume=True)
        with meter.stage("statistics"):
            # Not all of a stage's work is inside of an entry.
            time.sleep(0.1 * (not journal.has("statistics-0")))
            journal.tensors("statistics-0", lambda: work(0.1))
        # Nor does it matter when the next stage begins.
        time.sleep(0.1 * (not journal.has("search")))
        with meter.stage("search"):
            journal.value("search", lambda: work(0.2)["result"].tolist())
        journal.lock.close()

    first, again = StageMeter(), StageMeter()
    run(first)
    start = time.perf_counter()
    run(again)
    assert time.perf_counter() - start < 0.1
    assert again.seconds == pytest.approx(first.seconds, abs=0.05)
    assert first.seconds == pytest.approx({"statistics": 0.2, "search": 0.2}, abs=0.05)


def test_resumed_run_names_saved_stages(tmp_path, capsys):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    for name in ("data", "statistics-1", "search-losses"):
        journal.part(name).value(name, lambda: 0)
    begin_work(tmp_path / "work", resume=True)
    assert capsys.readouterr().err.strip().endswith(": data, statistics, search")


def test_journal_without_folder_keeps_nothing():
    assert [Journal().value("x", lambda n=n: n) for n in (1, 2)] == [1, 2]


def test_failed_journal_entry_leaves_no_files(tmp_path):
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path).value("x", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: No space left")])
def test_full_disk_is_one_line_error(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    journal = Journal.open(tmp_path / "work", {}, resume=False)
    monkeypatch.setattr("optimum_ffp.utils.resume.save_file", fail)
    with pytest.raises(FFPError, match="free disk space"):
        journal.tensors("x", lambda: {"y": torch.zeros(1)})
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["run.json"]


def test_run_killed_before_first_entry_starts_over(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".run.json.partial").write_text("{")
    assert Journal.open(tmp_path / "work", {}, resume=False).value("x", lambda: 3) == 3


@pytest.mark.parametrize("name", ["notes.txt", "run.json", "x.entry.json"])
def test_foreign_folders_are_neither_used_nor_emptied(tmp_path, name):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / name).write_text("{}")
    for resume in (False, True):
        with pytest.raises(FFPError, match=f"not a work folder .* {name}"):
            Journal.open(tmp_path / "work", {}, resume)
    Journal(tmp_path / "work").remove()
    assert (tmp_path / "work" / name).read_text() == "{}"
    with pytest.raises(FFPError, match="can't be written"):
        Journal.open(tmp_path / "work" / name, {}, resume=True)


def test_foreign_files_in_work_folder_are_kept(tmp_path):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    journal.part(1).value("x", lambda: 1)
    journal.tensors("y", lambda: {"z": torch.zeros(1)})
    (tmp_path / "work" / "notes.json").write_text("mine")
    journal.remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "notes.json"]


def test_work_folder_is_locked_against_second_process(lock_folder, tmp_path):
    Journal.open(tmp_path / "work", {}, resume=False).value("x", lambda: 1)
    kill = lock_folder(tmp_path / "work")
    with pytest.raises(FFPError, match="in use"):
        Journal.open(tmp_path / "work", {}, resume=True)
    kill()
    Journal.open(tmp_path / "work", {}, resume=True).remove()
    assert not list(tmp_path.iterdir())


def test_resume_of_other_run_is_rejected(tmp_path):
    identity = {"model": "a", "config": {"sparsity": [0.2], "seed": 0}, "versions": {"torch": "2.13"}}
    Journal.open(tmp_path / "w", identity, resume=False).value("x", lambda: 1)
    with pytest.raises(FFPError, match="--resume"):
        Journal.open(tmp_path / "w", identity, resume=False)
    other = identity | {"config": {"sparsity": [0.3], "seed": 0}, "versions": {"torch": "2.14"}}
    with pytest.raises(FFPError, match=r"config.sparsity was \[0.2\] and is \[0.3\]; versions.torch was '2.13'"):
        Journal.open(tmp_path / "w", other, resume=True)


@pytest.mark.parametrize("content", [b"", b"damaged", b"[0.1, 0.", b"\xff\xfe", b"[" * 10**5])
def test_corrupt_journal_entries_are_named(tmp_path, content):
    for kind, read in (("json", Journal(tmp_path).value), ("safetensors", Journal(tmp_path).tensors)):
        (tmp_path / f"x.entry.{kind}").write_bytes(content)
        with pytest.raises(FFPError, match=f"x.entry.{kind} is corrupt"):
            read("x", refuse)


def test_fingerprint_distinguishes_weights_and_config():
    first, again, seed = make_tiny_model(), make_tiny_model(), make_tiny_model(seed=1)
    assert fingerprint(first) == fingerprint(again) != fingerprint(seed)
    again.config.rms_norm_eps = 1e-3
    assert fingerprint(first) != fingerprint(again)


def test_resumed_run_recognizes_its_outputs(tmp_path, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    Journal.open(work, {}, resume=False).value("x", lambda: 1)
    write_record(out, run=run_id(work))
    begin_work(work, resume=True)
    assert has_written(work, out) and not has_written(work, tmp_path) and not has_written(None, out)
    begin_work(work, resume=False)
    assert not work.exists() and not has_written(work, out)
    begin_work(work, resume=True)
    assert "nothing to resume" in capsys.readouterr().err
    # The same settings are another run.
    Journal.open(work, {}, resume=False).value("x", lambda: 1)
    assert not has_written(work, out)

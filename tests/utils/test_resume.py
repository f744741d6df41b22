import errno
import json
import os
import re
import stat

import pytest
import torch
from safetensors import SafetensorError

from optimum_ffp.errors import FFPError
from optimum_ffp.utils.resume import Journal, fingerprint
from tests.helpers import make_tiny_model


def refuse() -> None:
    raise AssertionError("this was computed before")


def test_what_was_computed_once_is_not_computed_again(tmp_path):
    journal = Journal.open(tmp_path / "work", {"seed": 0}, resume=False)
    losses = [0.1 + 0.2, float("nan"), float("inf"), 1e-300]
    matrix = torch.randn(3, 3)
    assert journal.value("losses", lambda: losses) is not losses
    journal.tensors("matrix", lambda: {"gram": matrix.T})

    for file in (tmp_path / "work").glob("*.json"):
        assert not re.search("NaN|Infinity", file.read_text())
    again = Journal.open(tmp_path / "work", {"seed": 0}, resume=True)
    found = again.value("losses", refuse)
    assert json.dumps(found) == json.dumps(losses)
    assert torch.equal(again.tensors("matrix", refuse)["gram"], matrix.T)
    again.remove()
    assert not (tmp_path / "work").exists()


def test_parts_do_not_share_entries(tmp_path):
    journal = Journal(tmp_path)
    assert [journal.part({"sparsity": s}).value("policy", lambda s=s: s) for s in (0.2, 0.3, 0.2)] == [0.2, 0.3, 0.2]
    assert journal.part(1).part(2).value("x", lambda: "inner") == "inner"
    assert journal.part(1).value("x", lambda: "outer") == "outer"


def test_without_a_folder_nothing_is_kept():
    assert [Journal().value("x", lambda n=n: n) for n in (1, 2)] == [1, 2]


def test_a_failed_entry_leaves_nothing_behind(tmp_path):
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path).value("x", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("optimum_ffp.utils.resume.save_file", fail)
    journal = Journal(tmp_path / "work")
    with pytest.raises(FFPError, match="work can't be written: .*No space left; make room, then resume with --resume"):
        journal.tensors("x", lambda: {"y": torch.zeros(1)})
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["identity.json"]


def test_half_written_entries_are_thrown_away(tmp_path):
    folder = tmp_path / "work"
    Journal.open(folder, {}, resume=False).value("x", lambda: 1)
    (folder / "y.entry.json.partial").write_text('{"half')
    assert Journal.open(folder, {}, resume=True).value("y", lambda: 2) == 2
    assert not list(folder.glob("*.partial"))
    # Killed before anything was finished.
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "identity.json.partial").write_text("{")
    assert Journal.open(tmp_path / "begun", {}, resume=False).value("x", lambda: 3) == 3


@pytest.mark.parametrize("name", ["notes.txt", "identity.json", "x.entry.json"])
def test_a_folder_of_others_is_not_used(tmp_path, name):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / name).write_text("{}")
    for resume in (False, True):
        with pytest.raises(FFPError, match=f"is not a work folder of optimum-ffp: it contains {name}; move it away"):
            Journal.open(tmp_path / "work", {}, resume)
    assert (tmp_path / "work" / name).read_text() == "{}"
    # Nor is anything removed by whoever writes there all the same.
    Journal(tmp_path / "work").remove()
    assert (tmp_path / "work" / name).read_text() == "{}"
    with pytest.raises(FFPError, match="is a file"):
        Journal.open(tmp_path / "work" / name, {}, resume=True)


def test_what_others_have_put_into_a_work_folder_stays(tmp_path):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    journal.part(1).value("x", lambda: 1)
    journal.tensors("y", lambda: {"z": torch.zeros(1)})
    (tmp_path / "work" / "notes.json").write_text("mine")
    journal.remove()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.json"]


def test_two_processes_do_not_share_a_work_folder(hold, tmp_path):
    folder = tmp_path / "work"
    Journal.open(folder, {}, resume=False).value("x", lambda: 1)
    (folder / "y.entry.json.partial").write_text("being written")
    kill = hold(folder)
    with pytest.raises(FFPError, match="work is in use by another run"):
        Journal.open(folder, {}, resume=True)
    assert (folder / "y.entry.json.partial").is_file()
    kill()
    Journal.open(folder, {}, resume=True).remove()
    assert not list(tmp_path.iterdir())


def test_another_state_is_refused_with_the_difference_named(tmp_path):
    identity = {"model": "a", "config": {"sparsity": [0.2], "seed": 0}, "versions": {"torch": "2.13"}}
    Journal.open(tmp_path / "w", identity, resume=False).value("x", lambda: 1)
    with pytest.raises(FFPError, match="earlier run; resume it with --resume"):
        Journal.open(tmp_path / "w", identity, resume=False)
    other = identity | {"config": {"sparsity": [0.3], "seed": 0}, "versions": {"torch": "2.14"}}
    with pytest.raises(
        FFPError, match=r"config.sparsity was \[0.2\] and is \[0.3\]; versions.torch was '2.13' and is"
    ):
        Journal.open(tmp_path / "w", other, resume=True)


def test_what_changes_last_digits_alone_is_a_warning(tmp_path, caplog):
    for threads, resume in ((2, False), (2, True), (1, True)):
        assert not caplog.records
        journal = Journal.open(tmp_path / "w", {"model": "a"}, resume, notes={"threads": threads})
        assert journal.part(1).value("x", lambda n=threads: n) == 2
    (record,) = caplog.records
    assert "although threads was 2 and is 1: the result may differ in its last digits" in record.getMessage()


@pytest.mark.parametrize("content", [b"", b"damaged", b"[0.1, 0.", b"\xff\xfe", b"[" * 10**5])
def test_damaged_entries_are_named(tmp_path, content):
    for kind, read in (("json", Journal(tmp_path).value), ("safetensors", Journal(tmp_path).tensors)):
        (tmp_path / f"x.entry.{kind}").write_bytes(content)
        with pytest.raises(FFPError, match=rf"x.entry.{kind} is damaged: .*; delete it and resume"):
            read("x", refuse)


def test_a_fingerprint_tells_models_apart():
    first, again, seed = make_tiny_model(), make_tiny_model(), make_tiny_model(seed=1)
    assert fingerprint(first) == fingerprint(again) != fingerprint(seed)
    again.config.rms_norm_eps = 1e-3
    assert fingerprint(first) != fingerprint(again)


def test_file_systems_that_can_not_flush_a_folder_will_do(tmp_path, monkeypatch):
    flush = os.fsync

    def refuse_folders(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(file)

    monkeypatch.setattr("os.fsync", refuse_folders)
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    assert journal.value("found", lambda: 3) == 3 and journal.has("found")


def test_a_run_knows_the_outputs_that_it_has_begun_to_write(tmp_path):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    assert not journal.claims(tmp_path / "out") and not journal.claim(tmp_path / "out")
    (tmp_path / "out").mkdir()
    # Not by the process that has written it.
    with pytest.raises(FFPError, match="out exists; name another folder"):
        journal.claim(tmp_path / "out")
    assert Journal(tmp_path / "work").claim(tmp_path / "out")
    assert Journal(tmp_path / "work").claims(f"{tmp_path}/other/../out/")
    assert not Journal(tmp_path / "work").claims(tmp_path / "out-2")
    journal.remove()
    assert not Journal(tmp_path / "work").claims(tmp_path / "out")


def test_an_entry_of_a_disk_that_is_not_shared(tmp_path, monkeypatch):
    journal = Journal.open(tmp_path / "work", {}, resume=False)
    # As the main process says to the others.
    monkeypatch.setattr(journal, "has", lambda name: True)
    for read in (journal.value, journal.tensors):
        with pytest.raises(FFPError, match="of the main process is not there; .* must be on a disk that all share"):
            read("data", dict)

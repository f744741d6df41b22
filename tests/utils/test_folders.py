import os
from pathlib import Path

import pytest

from optimum_ffp.errors import FFPError
from optimum_ffp.utils.folders import (
    atomic_file,
    atomic_folder,
    check_file,
    check_links,
    check_output,
    check_output_is_not_input,
    locked,
)
from optimum_ffp.utils.record import RECORD
from tests.helpers import write_record


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    write_record(folder, files=[RECORD, "model.safetensors"])
    return folder


def test_atomic_folder_is_written_completely_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as staging:
        (staging / "half").touch()
        raise KeyboardInterrupt
    assert os.listdir(target.parent) == []
    for name in ("first", "second"):
        with atomic_folder(target) as staging:
            (staging / name).touch()
        assert os.listdir(target) == [name] and os.listdir(target.parent) == ["out"]
        with pytest.raises(OSError), atomic_folder(target):
            raise OSError("disk full")
        assert os.listdir(target) == [name] and os.listdir(target.parent) == ["out"]


def test_interrupt_between_renames_keeps_old_folder(tmp_path, monkeypatch):
    target, rename = tmp_path / "out", Path.rename
    target.mkdir()
    (target / "first").touch()

    def interrupted(path, place):
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), atomic_folder(target):
            pass
    assert os.listdir(tmp_path) == ["out"] and os.listdir(target) == ["first"]
    # A process that was killed there.
    target.rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(OSError), atomic_folder(target):
        raise OSError
    assert os.listdir(tmp_path) == ["out"] and os.listdir(target) == ["first"]


def test_atomic_file_is_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_file(tmp_path / "link") as staging:
        staging.write_text("1")
    with pytest.raises(OSError), atomic_file(tmp_path / "link") as staging:
        staging.write_text("2")
        raise OSError
    assert (tmp_path / "file").read_text() == "1" and sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_atomic_folder_sets_default_permissions(tmp_path):
    with atomic_folder(tmp_path / "out") as staging:
        (staging / "search").mkdir(mode=0o700)
        (staging / "search" / "agent.safetensors").touch(mode=0o600)
    (tmp_path / "new").touch()
    (tmp_path / "folder").mkdir()
    search = tmp_path / "out" / "search"
    assert (search / "agent.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert search.stat().st_mode == search.parent.stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_only_checkpoints_and_empty_folders_are_overwritten(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (checkpoint, tmp_path / "empty"):
        with pytest.raises(FFPError, match="--overwrite"):
            check_output(folder)
        assert check_output(folder, overwrite=True) == folder
    (tmp_path / "link").symlink_to(checkpoint)
    assert check_output(tmp_path / "link", overwrite=True) == checkpoint
    # A config without results is no checkpoint, nor is invalid JSON.
    for text in ('{"ffp_version": "0", "sparsity": 0.2}', "[]", "{"):
        (tmp_path / "empty" / RECORD).write_text(text)
        with pytest.raises(FFPError, match="not a checkpoint"):
            check_output(tmp_path / "empty", overwrite=True)
    for place, word in ((checkpoint / RECORD, "is a file"), (checkpoint / RECORD / "below", "can't be written")):
        with pytest.raises(FFPError, match=word):
            check_output(place)


def test_files_not_listed_in_record_are_never_deleted(checkpoint):
    (checkpoint / "my").mkdir()
    for name in ("my/notes[1].txt", "tokenizer.json", "c", "d"):
        (checkpoint / name).touch()
    with pytest.raises(FFPError, match="part of the checkpoint .* c, d, my/notes.1..txt and 1 more"):
        check_output(checkpoint, overwrite=True)
    write_record(checkpoint, files=[RECORD, "model.safetensors", "tokenizer.json", "my/notes[1].txt", "c"])
    with pytest.raises(FFPError, match="part of the checkpoint .* d; choose"):
        check_output(checkpoint, overwrite=True)
    (checkpoint / "d").unlink()
    assert check_output(checkpoint, overwrite=True)


def test_output_that_is_input_is_rejected(data_folder, tmp_path):
    file = data_folder / "train.txt"
    for output in (data_folder, tmp_path, file):
        with pytest.raises(FFPError, match="input of this command"):
            check_output_is_not_input(f"{output}/", ["wikitext2", file])
    check_output_is_not_input(data_folder / "out", [file, data_folder])
    check_output_is_not_input(tmp_path / "dat", [file])


def test_only_own_output_files_are_overwritten(tmp_path):
    def check(file, overwrite=False):
        return check_file(tmp_path / file, b'{"settings":', overwrite)

    (tmp_path / "there").write_text('{\n  "settings": {}}')
    (tmp_path / "mine").write_text("mine")
    assert check("there", overwrite=True) == tmp_path / "there"
    assert check("new/file") == tmp_path / "new" / "file"
    assert check("/dev/null", overwrite=True) == Path("/dev/null")
    for file, overwrite, word in (
        *(("there", False, "--overwrite"), ("there/file", True, "can't be written")),
        *((".", True, "is a folder"), ("mine", True, "another file type")),
    ):
        with pytest.raises(FFPError, match=word):
            check(file, overwrite)
    assert (tmp_path / "mine").read_text() == "mine"


def test_folder_lock_ends_with_process(lock_folder, tmp_path):
    folder = tmp_path / "new" / "out"
    kill = lock_folder(folder)
    with pytest.raises(FFPError, match="in use"), atomic_folder(folder):
        pass
    kill()
    with locked(folder):
        assert os.listdir(folder.parent) == [".out.lock"]
    assert os.listdir(folder.parent) == []


def test_symlinks_may_leave_folder_only_to_hub_cache_blobs(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "commit", tmp_path / "blobs"
    for folder in (snapshot / "search", blobs):
        folder.mkdir(parents=True)
    for file in (snapshot / "file", blobs / "blob", tmp_path / "secret"):
        file.touch()
    (snapshot / "link").symlink_to("file")
    (snapshot / "search" / "cached").symlink_to(os.path.join("..", "..", "..", "blobs", "blob"))
    check_links(snapshot, ["file", "link", "search/cached"])
    (snapshot / "leaving").symlink_to(tmp_path / "secret")
    (snapshot / "folder").symlink_to(tmp_path, target_is_directory=True)
    for name in ("leaving", "folder"):
        with pytest.raises(FFPError, match=name):
            check_links(snapshot, ["file", name])

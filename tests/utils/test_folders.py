import errno
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from optimum_ffp.errors import FFPError
from optimum_ffp.utils.folders import RECORD, FolderLock, check_apart, check_file, check_output, resolve, whole_folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / RECORD).write_text(json.dumps({"ffp_version": "0", "policy": {}}))
    (folder / "model.safetensors").touch()
    return folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as staging:
        (staging / "half").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with whole_folder(target) as staging:
        (staging / "first").write_text("1")
    with pytest.raises(OSError), whole_folder(target) as staging:
        raise OSError("disk full")
    assert [path.name for path in target.iterdir()] == ["first"]
    with whole_folder(target) as staging:
        (staging / "second").write_text("2")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_interrupt_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    target, rename = tmp_path / "out", Path.rename
    with whole_folder(target) as staging:
        (staging / "first").touch()

    def interrupted(path, place):
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), whole_folder(target) as staging:
            (staging / "second").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Killed there: what was to be replaced stays until something is in its place.
    kept = target.rename(tmp_path / ".out.abcd1234.replaced")
    with whole_folder(target) as staging:
        (staging / "third").touch()
    assert kept.is_dir() and target.is_dir()
    with whole_folder(target) as staging:
        (staging / "fourth").touch()
    assert not kept.exists()


def test_other_users_may_read_what_a_library_has_made_private(tmp_path):
    with whole_folder(tmp_path / "out") as staging:
        (staging / "search").mkdir(mode=0o700)
        (staging / "search" / "agent.safetensors").touch(mode=0o600)
    (tmp_path / "new").touch()
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out"
    assert (out / "search" / "agent.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert out.stat().st_mode == (out / "search").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_files_that_the_record_names_are_of_the_checkpoint(checkpoint):
    (checkpoint / "my[1].tiktoken").touch()
    with pytest.raises(FFPError, match="other files, which would be lost: my"):
        check_output(checkpoint, overwrite=True)
    (checkpoint / RECORD).write_text(json.dumps({"ffp_version": "0", "policy": {}, "files": ["my[1].tiktoken"]}))
    assert check_output(checkpoint, overwrite=True) == checkpoint


def test_output_is_checked_before_the_work(tmp_path):
    with pytest.raises(FFPError, match=r"exists; name another folder, or give --overwrite"):
        check_output(tmp_path)
    assert check_output(tmp_path, overwrite=True) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(FFPError, match="is a file"):
        check_output(tmp_path / "file")
    with pytest.raises(FFPError, match="can't be written"):
        check_output(tmp_path / "file" / "below")


def test_only_a_checkpoint_of_ours_is_replaced(checkpoint, tmp_path):
    assert check_output(checkpoint, overwrite=True) == checkpoint
    (checkpoint / "my" / "notes").mkdir(parents=True)
    (checkpoint / "my" / "notes" / "a.txt").touch()
    (checkpoint / "model.gguf").touch()
    for overwrite in (False, True):
        with pytest.raises(
            FFPError, match=r"contains a checkpoint and other files, .* lost: model.gguf, my/notes/a.txt;"
        ):
            check_output(checkpoint, overwrite)
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in "edcba":
        (precious / name).touch()
    with pytest.raises(FFPError, match=r"is never replaced: it contains a, b, c and 2 more; name"):
        check_output(precious, overwrite=True)
    # A config that somebody keeps is no checkpoint, nor is a file of that name that says nothing.
    for text in ('{"ffp_version": "0", "sparsity": 0.2}', "[]", "{"):
        (precious / RECORD).write_text(text)
        with pytest.raises(FFPError, match="is not a checkpoint of optimum-ffp"):
            check_output(precious, overwrite=True)


def test_links_are_followed_unless_they_lead_nowhere(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert check_output(tmp_path / "link", overwrite=True) == checkpoint
    with whole_folder(resolve(tmp_path / "link")) as staging:
        (staging / "new").touch()
    assert (tmp_path / "link").is_symlink() and [file.name for file in checkpoint.iterdir()] == ["new"]
    with pytest.raises(FFPError, match=r"nowhere is a link to .*gone, which doesn't exist"):
        check_output(tmp_path / "nowhere")


def test_what_can_not_be_replaced_as_a_whole(checkpoint, monkeypatch):
    with monkeypatch.context() as patch:
        patch.chdir(checkpoint)
        with pytest.raises(FFPError, match="is the current folder or contains it, which can't be replaced"):
            check_output(".", overwrite=True)
    monkeypatch.setattr("os.path.ismount", lambda path: path == checkpoint)
    with pytest.raises(FFPError, match="is a mounted disk, which can't be replaced; name a folder in it"):
        check_output(checkpoint, overwrite=True)


def test_what_is_read_is_not_written(data_folder, tmp_path):
    file = data_folder / "train.txt"
    for output in (data_folder, tmp_path, file):
        found = "is an" if output == file else "contains .*train.txt, an"
        with pytest.raises(FFPError, match=f"{output}/ {found} input of this command, .*; name another output"):
            check_apart(f"{output}/", ["wikitext2", file])
    check_apart(data_folder / "out", [file, data_folder])
    check_apart(tmp_path / "dat", [file])


def test_files_are_checked_before_the_work(tmp_path):
    (tmp_path / "there").write_text('{\n  "settings": {}}')
    check = partial(check_file, begins=b'{"settings":')
    with pytest.raises(FFPError, match="there exists; name another file, or give --overwrite"):
        check(tmp_path / "there")
    assert check(tmp_path / "there", overwrite=True) == tmp_path / "there"
    assert check(tmp_path / "new" / "file") == tmp_path / "new" / "file"
    assert check("/dev/null", overwrite=True) == Path("/dev/null")
    for place in ("there/file", "/proc/file"):
        with pytest.raises(FFPError, match="can't be written: .* is not a folder that you may write to"):
            check(tmp_path / place)
    with pytest.raises(FFPError, match="is a folder; name a file"):
        check(tmp_path)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(FFPError, match="there is of another file type and is never replaced"):
        check(tmp_path / "there", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "mine"


def test_a_locked_folder_is_free_once_its_holder_is_killed(hold, tmp_path):
    folder = tmp_path / "new" / "out"
    kill = hold(folder)
    with pytest.raises(FFPError, match="out is in use by another run; wait for its end, or name another folder"):
        FolderLock(folder)
    with pytest.raises(FFPError, match="is in use by another run"), whole_folder(folder):
        pass
    kill()
    # What a killed process has left is removed under the same lock.
    (folder.parent / ".out.abcdefgh.partial").mkdir()
    (folder.parent / ".out.mine").mkdir()
    with whole_folder(folder):
        pass
    assert sorted(os.listdir(folder.parent)) == [".out.mine", "out"]


def test_a_lock_leaves_nothing_behind(tmp_path):
    first, second = FolderLock(tmp_path / "new" / "out"), FolderLock(tmp_path / "new" / "out")
    second.release()
    assert os.listdir(tmp_path / "new") == [".out.lock"]
    del first
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are made otherwise")
def test_where_there_are_no_locks_a_run_goes_on(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with whole_folder(tmp_path / "out"):
        pass
    assert "is on a file system without locks" in caplog.text and os.listdir(tmp_path) == ["out"]

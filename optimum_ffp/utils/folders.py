"""Output folders and files: checks before replacing them, locks between runs, and atomic writes."""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import FFPError


logger = logging.getLogger(__name__)
RECORD = "ffp_config.json"
# Most bytes of the name of a file or folder.
LONGEST_NAME = 255
# Suffix of what is not completely written.
PARTIAL = ".partial"
# Key in the record, of the names of further files of a checkpoint.
FILES = "files"
# Errors of file systems without locks, such as some network ones; filelock may raise errors without a number.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, None)
# Patterns of the weight files.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# Patterns of all files of a checkpoint, relative to its folder. Folders with any other file are never replaced.
CHECKPOINT_FILES = (
    *(RECORD, "README.md", "report.html", "search_log.jsonl", "search/agent.safetensors"),
    *("policy.png", "search.png", "calibration.png", "pareto.png"),
    *("config.json", "generation_config.json", "modeling_ffp_*.py"),
    *WEIGHT_FILES,
    *("recovery.png", "recovery-*.png", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenization_*.py"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)


def expand(path: str | os.PathLike) -> Path:
    """Return the path with `~` expanded; of an unknown user it stays, where `Path.expanduser` raises an error.

    Raises:
        FFPError: If a name in it is longer than file systems allow.
    """
    found = Path(os.path.expanduser(path))
    for name in found.parts:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise FFPError(f"{name[:40]}... is no name of a file, which has at most {LONGEST_NAME} bytes")
    return found


def resolve(path: str | os.PathLike) -> Path:
    """Return the absolute path with `~` expanded, links resolved and no trailing slash."""
    return Path(os.path.realpath(expand(path)))


def name_some(names: Iterable[str]) -> str:
    """Return the first three names as text, with the number of the remaining ones."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class FolderLock:
    """Lock against writes to a folder by other processes, held until it is released or this process ends.

    A process may lock the same folder several times: it stays locked until every lock is released.

    Args:
        folder: The folder, which need not exist; the lock is a file beside it.

    Raises:
        FFPError: If another process holds the lock, or the lock file can't be created.
    """

    def __init__(self, folder: Path):
        if not folder.name:
            raise FFPError(f"{folder} can't be replaced; name a folder in it")
        missing = [parent for parent in folder.parents if not parent.exists()]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0, thread_local=False, is_singleton=True)
            lock.acquire()
        except Timeout:
            raise FFPError(f"{folder} is in use by another run; wait for its end, or name another folder") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) not in NO_LOCKS:
                raise FFPError(f"{folder} can't be written: {error}") from None
            logger.warning("%s is on a file system without locks: don't start a second run with this folder", folder)
        self.release = weakref.finalize(self, _unlock, lock, missing)

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.release()


def _unlock(lock: FileLock, made: list[Path]) -> None:
    if lock.lock_counter <= 1:
        # Delete the file before the release: afterwards it may be another process's lock. Fails on Windows, where
        # filelock deletes it.
        with suppress(OSError):
            os.unlink(lock.lock_file)
    lock.release()
    with suppress(OSError):
        for parent in made:
            parent.rmdir()


def check_apart(output: str | os.PathLike, sources: Iterable[str | os.PathLike]) -> None:
    """Raise `FFPError` if an output folder or file is, or contains, one of the inputs."""
    path = resolve(output)
    for source in sources:
        read = resolve(source)
        if read.exists() and read.is_relative_to(path):
            found = "is an input of this command" if read == path else f"contains {source}, an input of this command"
            raise FFPError(f"{output} {found}, and can't be written; name another output")


def check_output(directory: str | os.PathLike, overwrite: bool = False) -> Path:
    """Return the resolved output folder after checking that it can be written.

    An existing folder is only replaced if `overwrite` is set, and if it is empty or a checkpoint of optimum-ffp
    without other files.

    Raises:
        FFPError: If it exists and may not be replaced, or its parent can't be written to.
    """
    path = resolve(directory)
    if os.path.islink(os.path.expanduser(directory)) and not path.exists():
        raise FFPError(f"{directory} is a link to {path}, which doesn't exist; make that folder, or name another")
    if path.exists():
        _check_replaceable(path, directory)
        if not overwrite:
            raise FFPError(
                f"{directory} exists; name another folder, or give --overwrite (overwrite=True) to replace it"
            )
    check_writable(path, directory)
    return path


def _check_replaceable(path: Path, directory: str | os.PathLike) -> None:
    if not path.is_dir():
        raise FFPError(f"{directory} is a file; name a folder")
    if os.path.ismount(path) or Path.cwd().is_relative_to(path):
        what = "a mounted disk" if os.path.ismount(path) else "the current folder or contains it"
        raise FFPError(f"{directory} is {what}, which can't be replaced; name a folder in it")
    record = read_record(path)
    if not record:
        if found := [entry.name for entry in path.iterdir()]:
            raise FFPError(
                f"{directory} is not a checkpoint of optimum-ffp and is never replaced: it contains "
                f"{name_some(found)}; name another folder"
            )
        return
    if foreign := other_files(path, record.get(FILES, [])):
        raise FFPError(
            f"{directory} contains a checkpoint and other files, which would be lost: {name_some(foreign)}; move them "
            "away, or name another folder"
        )


def other_files(path: Path, named: Iterable[str] = ()) -> list[str]:
    """Return the names of the files in the folder of a checkpoint that are neither usual there nor `named`."""
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    own = (*CHECKPOINT_FILES, *map(escape, named))
    return sorted(file for file in files if not any(fnmatch(file, pattern) for pattern in own))


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder contains the record of a pruning run."""
    return bool(read_record(path))


def read_record(directory: str | os.PathLike) -> dict[str, Any]:
    """Return the record of a pruning run in a folder; empty if there is none."""
    try:
        record = json.loads((resolve(directory) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"ffp_version", "policy"} <= record.keys() else {}


def check_file(file: str | os.PathLike, begins: bytes, overwrite: bool = False) -> Path:
    """Return the absolute path of an output file after checking that it can be written.

    Args:
        file: Path of the file.
        begins: First bytes of all files of this type, without whitespace: other files are never replaced.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FFPError: If it exists and may not be replaced, or it or its folder can't be written to.
    """
    # Links are not resolved: /dev/stdout is a link without a target path.
    path = Path(os.path.abspath(expand(file)))
    if path.is_dir():
        raise FFPError(f"{file} is a folder; name a file")
    if not path.exists():
        check_writable(path, file)
        return path
    if not overwrite:
        raise FFPError(f"{file} exists; name another file, or give --overwrite to replace it")
    try:
        with open(path, "rb+" if path.is_file() else "wb") as opened:
            head = b"".join(opened.read(64).split()) if path.is_file() else b""
    except OSError as error:
        raise FFPError(f"{file} can't be written: {error.strerror}; name another file") from None
    if head and not head.startswith(begins):
        raise FFPError(f"{file} is of another file type and is never replaced; name another file")
    return path


def first_existing(path: Path) -> Path:
    """Return the path, or the first of its parents that exists."""
    # The drive of a path on Windows may be missing, and is its own parent.
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_writable(path: Path, label: str | os.PathLike) -> None:
    """Raise `FFPError` if the first existing parent of `path` can't be written to."""
    parent = first_existing(path.parent)
    try:
        # Permissions don't tell whether a disk is mounted read-only.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise FFPError(
            f"{label} can't be written: {parent} is not a folder that you may write to ({error.strerror})"
        ) from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it if the context succeeds and is deleted otherwise.

    Raises:
        FFPError: If another process is writing `path`.
    """
    with FolderLock(path):
        _remove_remains(path)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
        try:
            yield staging
            _make_readable(staging)
            if path.exists():
                replaced = staging.with_suffix(".replaced")
                path.rename(replaced)
                try:
                    staging.rename(path)
                except BaseException:
                    replaced.rename(path)
                    raise
                # The new one is in place. The next run removes what can't be removed now.
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                staging.rename(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Yield a temporary file beside `file` that replaces it if the context succeeds and is deleted otherwise.

    Raises:
        FFPError: If another process is writing `file`.
    """
    # The file that a link is to.
    path = resolve(file)
    with FolderLock(path):
        _remove_remains(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            _make_readable(Path(name))
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def _make_readable(place: Path) -> None:
    """Give a temporary file or folder the permissions of new ones; some libraries make theirs private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (place, *place.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _remove_remains(path: Path) -> None:
    """Remove temporary files and folders of killed processes beside `path`, none of which the lock leaves in use."""
    replaced_by_nothing = not path.exists()
    for rest in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.(partial|replaced)", rest.name):
            if rest.suffix == ".replaced" and replaced_by_nothing:
                logger.warning("%s is what %s held before a run was killed", rest, path)
                continue
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink(missing_ok=True)

"""Output folders and files: checks before replacing them, locks between runs, and atomic writes."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from ..config.fields import expand
from ..errors import FFPError
from .record import Record


# Suffixes of incomplete outputs, and of outputs about to be deleted.
PARTIAL, REPLACED = ".partial", ".replaced"
LOCKED: set[Path] = set()


def resolve(path: str | os.PathLike) -> Path:
    """Return the absolute path with `~` expanded, links resolved and no trailing slash."""
    return Path(os.path.realpath(expand(path)))


def abbreviate(names: Iterable[str]) -> str:
    """Return the first three names and the number of the others as text."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def list_files(folder: Path) -> set[str]:
    """Return the names of all files in a folder, relative to it; links to folders count as files."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in files}


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Raise `FFPError` if files of a folder are links to files outside it, other than the blobs of the Hub's cache."""
    root = resolve(folder)
    allowed = root, root.parent.parent / "blobs"
    if links := [name for name in names if not any(resolve(root / name).is_relative_to(place) for place in allowed)]:
        raise FFPError(
            f"{folder} contains links to files outside it, which are never copied or uploaded: {abbreviate(links)}; "
            "replace them with these files if you trust them"
        )


def check_output_is_not_input(output: str | os.PathLike, sources: Iterable[str | os.PathLike]) -> None:
    """Raise `FFPError` if an output folder or file is, or contains, one of the inputs."""
    path = resolve(output)
    for source in sources:
        resolved = resolve(source)
        if resolved.exists() and resolved.is_relative_to(path):
            raise FFPError(f"{output} would replace {source}, an input of this command; choose another output")


def check_output(directory: str | os.PathLike, overwrite: bool = False) -> Path:
    """Return the resolved path of an output folder. Raises `FFPError` if it can't be written.

    With `overwrite`, it is replaced if it is empty or a checkpoint of optimum-ffp without other files.
    """
    path = resolve(directory)
    if path.is_dir():
        record, names = Record.read(path), list_files(path)
        if record:
            kind, foreign = "contains files that are not part of the checkpoint", names.difference(record.files)
        else:
            kind, foreign = "is not a checkpoint of optimum-ffp", {entry.name for entry in path.iterdir()}
        if foreign:
            raise FFPError(f"{directory} {kind} and is never replaced: {abbreviate(foreign)}; choose another folder")
        if not overwrite:
            raise FFPError(
                f"{directory} exists; choose another folder, or pass --overwrite (overwrite=True) to replace it"
            )
    elif os.path.lexists(path):
        raise FFPError(f"{directory} is a file; choose a folder")
    check_writable(path, directory)
    return path


def check_file(file: str | os.PathLike, signature: bytes, overwrite: bool = False) -> Path:
    """Return the absolute path of an output file. Raises `FFPError` if it can't be written.

    With `overwrite`, it is replaced unless it is of another type: it must begin with `signature`, without whitespace.
    """
    # Links are not resolved: /dev/stdout is a link without a target path.
    path = Path(os.path.abspath(expand(file)))
    if path.is_dir():
        raise FFPError(f"{file} is a folder; choose a file")
    if not path.exists():
        check_writable(path, file)
        return path
    if not overwrite:
        raise FFPError(f"{file} exists; choose another file, or pass --overwrite to replace it")
    # A pipe would end for its reader if it were opened twice.
    if not path.is_file():
        return path
    try:
        with open(path, "rb+") as stream:
            head = b"".join(stream.read(64).split())
    except OSError as error:
        raise FFPError(f"{file} can't be written: {error.strerror}; choose another file") from None
    if head and not head.startswith(signature):
        raise FFPError(f"{file} has another file type and is never replaced; choose another file")
    return path


def first_existing(path: Path) -> Path:
    """Return the path, or the first of its parents that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def check_writable(path: Path, label: str | os.PathLike) -> None:
    """Raise `FFPError` if the first existing parent of `path` can't be written to."""
    parent = first_existing(path.parent)
    try:
        # Permissions don't show that a file system is mounted read-only.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise FFPError(f"{label} can't be written: {parent} is not a writable folder ({error.strerror})") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a path against other processes with a file next to it; reentrant. Raises `FFPError` if that fails."""
    file = path.with_name(f".{path.name}.lock")
    if file in LOCKED:
        yield
        return
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(file, timeout=1))
        except TimeoutError:
            raise FFPError(f"{path} is in use by another run; wait until it ends, or choose another folder") from None
        except OSError as error:
            raise FFPError(f"{path} can't be written: {error}") from None
        stack.callback(file.unlink, missing_ok=True)
        LOCKED.add(file)
        stack.callback(LOCKED.discard, file)
        yield


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` if the context succeeds, and is deleted otherwise."""
    staging, replaced = (path.with_name(f".{path.name}{suffix}") for suffix in (PARTIAL, REPLACED))

    def clean_up() -> None:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        for folder in (staging, replaced):
            shutil.rmtree(folder, ignore_errors=True)

    with locked(path):
        # After a killed process.
        clean_up()
        try:
            staging.mkdir()
            yield staging
            _make_readable(staging)
            if path.exists():
                path.rename(replaced)
            staging.rename(path)
        finally:
            clean_up()


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a temporary file, flushed to disk and renamed to `file` if the context succeeds, and deleted otherwise."""
    path = resolve(file)
    staging = path.with_name(f".{path.name}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield staging
        with open(staging, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _make_readable(folder: Path) -> None:
    """Set default permissions, since safetensors creates private files."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)

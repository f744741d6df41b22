"""Intermediate results of a run in a folder, from which another process can resume."""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..errors import FFPError
from . import processes
from .folders import PARTIAL, FolderLock, check_output, check_writable, name_some, resolve
from .json import from_exact_json, to_exact_json, to_json


logger = logging.getLogger(__name__)
IDENTITY = "identity.json"
# Marks that file as the identity of a work folder. An incompatible change of the entries needs another number.
FORMAT = "optimum-ffp work folder, 1"
# Suffixes of entries, and of files that are not completely written.
ENDINGS = (".entry.json", ".entry.safetensors")
# Folder of the checkpoints of `Trainer`.
CHECKPOINTS = "checkpoints"
# Number of sampled entries per tensor for the fingerprint of a model.
SAMPLED_ENTRIES = 1024


class Journal:
    """Expensive results by name, each saved when it is computed.

    Pruning is deterministic: a run that reads the saved results instead of computing them ends with the same weights,
    bit for bit. Every entry is a file, which is written, flushed to disk and then renamed, so that no entry is ever
    incomplete. Several processes use a journal in step, and compute the same results: the main one writes them.

    Args:
        folder: Folder of the entries, created with the first one; `None` saves nothing.
        identity: Everything that the entries depend on.
        prefix: Prefix of the names of entries.
        lock: Lock on the folder, held as long as this journal is used.
        notes: Settings that only affect the last digits of the entries.
        on_disk: Whether tensors are views of the memory-mapped files as soon as they are saved, so that they take no
            memory of their own.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        prefix: str = "",
        lock: FolderLock | None = None,
        notes: Mapping[str, Any] | None = None,
        on_disk: bool = False,
    ):
        self.folder, self.identity, self.prefix, self.lock = folder, identity or {}, prefix, lock
        self.notes, self.on_disk = notes or {}, on_disk
        # Outputs of this process.
        self._written: set[Path] = set()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        identity: Mapping[str, Any],
        resume: bool,
        notes: Mapping[str, Any] | None = None,
        on_disk: bool = False,
    ) -> "Journal":
        """Open the journal of a run and lock its folder.

        Args:
            folder: Folder of the journal, which need not exist.
            identity: Everything that the results depend on: model, settings, versions of libraries.
            resume: Whether to resume from existing entries.
            notes: Settings that only affect the last digits, such as the number of threads; differences are logged as
                warnings.
            on_disk: As for the class.

        Raises:
            FFPError: If there is a journal and `resume` is off, it belongs to another run or is in use by another
                process, or the folder contains other files.
        """
        path = resolve(folder)
        identity = json.loads(to_json(identity))
        if not processes.is_main():
            processes.wait()
            return cls(path, identity, notes=notes, on_disk=on_disk)
        lock = FolderLock(path)
        try:
            check_work_folder(folder, resume)
            found = _read_state(path) or {"identity": identity, "notes": notes or {}}
            differences = list(_differences(found["identity"], identity))
            if differences:
                raise FFPError(
                    f"the state in {folder} belongs to another run: {'; '.join(differences)}. Resume with the "
                    "same settings, or delete that folder to start again"
                )
        except FFPError:
            lock.release()
            raise
        for difference in _differences(found["notes"], notes or {}):
            logger.warning(
                "resuming %s although %s: the result may differ in its last digits from that of an uninterrupted run",
                folder,
                difference,
            )
        for file in _own_files(path):
            if file.name.endswith(PARTIAL):
                file.unlink()
        processes.wait()
        return cls(path, identity, lock=lock, notes=notes, on_disk=on_disk)

    def part(self, *keys: Any) -> "Journal":
        """Return a journal in the same folder for entries that also depend on the given keys."""
        text = json.dumps(keys, sort_keys=True)
        prefix = f"{self.prefix}{hashlib.sha256(text.encode()).hexdigest()[:12]}-"
        return Journal(self.folder, self.identity, prefix, notes=self.notes, on_disk=self.on_disk)

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the saved value of an entry, or compute and save it. It must be JSON-serialisable."""
        if self.folder is None:
            return compute()
        path = self._path(name, ENDINGS[0])
        if self.has(name):
            self._check_shared(path)
            with _damage_named(path):
                return from_exact_json(path.read_text(encoding="utf-8"))
        text = to_exact_json(compute())
        self._write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        # Return the decoded JSON, so that a resumed run gets the same value.
        return from_exact_json(text)

    def tensors(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the saved tensors of an entry, in host memory, or compute and save them."""
        if self.folder is None:
            return compute()
        path = self._path(name, ENDINGS[1])
        if not self.has(name):
            result = compute()
            kept = {key: tensor.detach().cpu().contiguous() for key, tensor in result.items()}
            self._write(path, lambda partial: save_file(kept, partial))
            if not self.on_disk:
                return result
            del result, kept
            processes.wait()
        self._check_shared(path)
        with _damage_named(path):
            return load_file(path)

    def mapped(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return tensors that are only worth a file if they are then views of it (`on_disk`), or compute them."""
        return self.tensors(name, compute) if self.on_disk else compute()

    def has(self, name: str) -> bool:
        """Return whether an entry is saved."""
        if self.folder is None:
            return False
        return processes.on_main(lambda: any(self._path(name, ending).is_file() for ending in ENDINGS))

    def claim(self, output: str | os.PathLike, overwrite: bool = False) -> bool:
        """Note that this run writes an output folder, which it may replace when it is resumed.

        Args:
            output: The output folder.
            overwrite: Whether it may replace any checkpoint that is there.

        Returns:
            Whether it may replace what is there: with `overwrite`, or if this run has begun to write it before it was
            killed and resumed. It doesn't replace what this process has written: another result of a sweep.

        Raises:
            FFPError: If there is something that it may not replace.
        """
        overwrite = overwrite or (resolve(output) not in self._written and self.claims(output))
        if processes.is_main():
            check_output(output, overwrite)
        self._of_output(output).value("output", lambda: Path(output).name)
        self._written.add(resolve(output))
        return overwrite

    def claims(self, output: str | os.PathLike) -> bool:
        """Return whether this run has begun to write an output folder."""
        return self._of_output(output).has("output")

    def _of_output(self, output: str | os.PathLike) -> "Journal":
        return self.part("output", str(resolve(output)))

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{self.prefix}{name}{ending}"

    def remove(self) -> None:
        """Delete all entries, and the folder if it contains no other files."""
        if self.folder is not None and processes.is_main():
            remove_work(self.folder)
        if self.lock is not None:
            self.lock.release()

    def _check_shared(self, path: Path) -> None:
        if not path.is_file():
            raise FFPError(f"{path} of the main process is not there; {self.folder} must be on a disk that all share")

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        if not processes.is_main():
            return
        identity = self.folder / IDENTITY
        if not identity.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = to_json({"format": FORMAT, "identity": self.identity, "notes": self.notes}, indent=2)
            _write_atomically(identity, lambda partial: partial.write_text(text, encoding="utf-8"))
        _write_atomically(path, write)


def holds_work(folder: Path) -> bool:
    """Return whether a folder contains entries to resume from."""
    return _read_state(folder) is not None


def work_folder_of(output: str | os.PathLike) -> Path:
    """Return the work folder of an output folder: beside it, so that the same command finds it again."""
    return Path(f"{resolve(output)}.work")


def begin_work(folder: Path, resume: bool) -> None:
    """Discard the entries of a work folder unless a run resumes from them; if there are none, say so."""
    if not resume:
        remove_work(folder)
    elif not holds_work(folder):
        found = f"there is nothing to resume, {folder} holds no state: starting from the beginning"
        print(found, file=sys.stderr)


def check_work_folder(folder: str | os.PathLike, resume: bool, overwrite: bool = False) -> None:
    """Check that a run may use a work folder.

    Args:
        folder: The work folder, which need not exist.
        resume: Whether to resume from existing entries.
        overwrite: Whether to discard existing entries.

    Raises:
        FFPError: If the folder contains other files, or entries while neither `resume` nor `overwrite` is set.
    """
    path = resolve(folder)
    if path.exists() and not path.is_dir():
        raise FFPError(f"the work folder {folder} is a file; move it away, or name another folder")
    if not path.is_dir():
        check_writable(path, folder)
    elif not holds_work(path):
        # A process may have been killed while it wrote the identity.
        if found := [entry.name for entry in path.iterdir() if entry.name != IDENTITY + PARTIAL]:
            raise FFPError(
                f"{folder} is not a work folder of optimum-ffp: it contains {name_some(found)}; move it away, or name "
                "another folder"
            )
    elif not (resume or overwrite):
        raise FFPError(
            f"{folder} contains the state of an earlier run; resume it with --resume (resume=True), or begin again "
            "with --overwrite, or by deleting that folder"
        )


def remove_work(folder: Path) -> None:
    """Remove the entries of a work folder, and the folder if it contains no other files."""
    if not holds_work(folder):
        return
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    # The identity is deleted last, since it marks the remaining files as a work folder's.
    for file in (*_own_files(folder), folder / IDENTITY):
        with suppress(OSError):
            file.unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    # Invalid JSON and invalid UTF-8 raise ValueError; unexpected objects raise TypeError.
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise FFPError(f"{path} is damaged: {error}; delete it and resume") from None


def _own_files(folder: Path) -> list[Path]:
    """Return all files of a work folder except the identity."""
    own = [file for file in folder.glob("*") if file.name.removesuffix(PARTIAL).endswith(ENDINGS)]
    return [*own, *folder.glob(IDENTITY + PARTIAL)]


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return `identity` and `notes` of a work folder; `None` if it is not a work folder."""
    try:
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("identity"), dict)
    return {"notes": {}} | found if known else None


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    # safetensors raises its own error if the disk is full.
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise FFPError(f"{path.parent} can't be written: {error}; make room, then resume with --resume") from None
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Some file systems can't flush a folder; the file itself is.
            with suppress(OSError):
                os.fsync(folder)
        finally:
            os.close(folder)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], name: str = ""):
    for key in sorted(before.keys() | now.keys()):
        old, new, label = before.get(key), now.get(key), f"{name}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{label}.")
        elif old != new:
            yield f"{label} was {old!r} and is {new!r}"


def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of a model's config and of a sample of every tensor."""
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED_ENTRIES)].cpu().double()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]

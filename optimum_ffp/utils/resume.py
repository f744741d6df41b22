"""What a prune has finished so far, in a folder: another process goes on from there."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..errors import FFPError
from .folders import FolderLock, check_writable, name_some, resolve
from .json import from_exact_json, to_exact_json, to_json


logger = logging.getLogger(__name__)
IDENTITY = "identity.json"
# What says in that file that a work folder is one. Entries that this version can't read need another.
FORMAT = "optimum-ffp work folder, 1"
# What the name of every entry ends in, and of what was being written when a process was killed.
ENDINGS = (".entry.json", ".entry.safetensors")
PARTIAL = ".partial"
# Entries of a tensor that tell one model from another.
SAMPLED_ENTRIES = 1024


class Journal:
    """Expensive results by name, each kept when it is done.

    A prune is deterministic: whoever runs it again and takes what is kept here instead of computing it ends with the
    same weights, bit for bit. An entry is written to a file of its own, flushed to the disk and then renamed, so it is
    there whole or not at all.

    Args:
        folder: Where the entries are; `None` keeps nothing. It comes with the first entry.
        identity: What all entries depend on.
        prefix: What the names of entries begin with.
        lock: What keeps other processes from the folder for as long as this journal is used.
        notes: What they depend on in their last digits alone.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        prefix: str = "",
        lock: FolderLock | None = None,
        notes: Mapping[str, Any] | None = None,
    ):
        self.folder, self.identity, self.prefix, self.lock = folder, identity or {}, prefix, lock
        self.notes = notes or {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        identity: Mapping[str, Any],
        resume: bool,
        notes: Mapping[str, Any] | None = None,
    ) -> "Journal":
        """The journal of one prune.

        Args:
            folder: Where it is or will be.
            identity: Everything that the results depend on: model, settings, versions of libraries.
            resume: Whether to go on from what is there.
            notes: What their last digits may depend on, such as the number of threads; a difference is a warning.

        Raises:
            FFPError: If there is a journal and `resume` is off, it belongs to something else or is in use by another
                process, or the folder holds anything else.
        """
        path = resolve(folder)
        identity = json.loads(to_json(identity))
        lock = FolderLock(path)
        try:
            check_work_folder(folder, resume)
            found = _read_state(path) or {"identity": identity, "notes": notes or {}}
            differences = list(_differences(found["identity"], identity))
            if differences:
                raise FFPError(
                    f"the state in {folder} is of another prune: {'; '.join(differences)}. Resume with what it was "
                    "begun with, or delete that folder to start anew"
                )
        except FFPError:
            lock.release()
            raise
        for difference in _differences(found["notes"], notes or {}):
            logger.warning(
                "resuming %s although %s: the result may differ in its last digits from that of a run without a break",
                folder,
                difference,
            )
        for file in _own_files(path):
            if file.name.endswith(PARTIAL):
                file.unlink()
        return cls(path, identity, lock=lock, notes=notes)

    def part(self, *keys: Any) -> "Journal":
        """A journal of its own for what depends on these keys too, in the same folder."""
        text = json.dumps(keys, sort_keys=True)
        prefix = f"{self.prefix}{hashlib.sha256(text.encode()).hexdigest()[:12]}-"
        return Journal(self.folder, self.identity, prefix, notes=self.notes)

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or returned when it was last asked: anything that JSON holds."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{self.prefix}{name}{ENDINGS[0]}"
        if path.is_file():
            with _damage_named(path):
                return from_exact_json(path.read_text(encoding="utf-8"))
        text = to_exact_json(compute())
        self._write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        # As JSON gives it back, so that a resumed prune sees the same.
        return from_exact_json(text)

    def tensors(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The same for tensors by name. What was kept comes back in host memory."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{self.prefix}{name}{ENDINGS[1]}"
        if not path.is_file():
            result = compute()
            kept = {key: tensor.detach().cpu().contiguous() for key, tensor in result.items()}
            self._write(path, lambda partial: save_file(kept, partial))
            return result
        with _damage_named(path):
            return load_file(path)

    def remove(self) -> None:
        """Forgets everything. What others have put into the folder stays, and the folder with it."""
        if self.folder is not None:
            remove_work(self.folder)
        if self.lock is not None:
            self.lock.release()

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        identity = self.folder / IDENTITY
        if not identity.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = to_json({"format": FORMAT, "identity": self.identity, "notes": self.notes}, indent=2)
            _write_atomically(identity, lambda partial: partial.write_text(text, encoding="utf-8"))
        _write_atomically(path, write)


def holds_work(folder: Path) -> bool:
    """Whether there is something to resume from in a folder."""
    return _read_state(folder) is not None


def check_work_folder(folder: str | os.PathLike, resume: bool, overwrite: bool = False) -> None:
    """Whether a prune may keep its work in a folder.

    Args:
        folder: Where it is or will be.
        resume: Whether to go on from what is there.
        overwrite: Whether to throw away what a prune has left there.

    Raises:
        FFPError: If the folder holds anything but a prune's work, or that and neither was asked for.
    """
    path = resolve(folder)
    if path.exists() and not path.is_dir():
        raise FFPError(f"{folder}, where finished work is to be kept, is a file; move it away, or name another folder")
    if not path.is_dir():
        check_writable(path, folder)
    elif not holds_work(path):
        # A process may have been killed when it had only begun.
        if found := [entry.name for entry in path.iterdir() if entry.name != IDENTITY + PARTIAL]:
            raise FFPError(
                f"{folder}, where finished work is to be kept, is no work folder of ours: it holds "
                f"{name_some(found)}; move it away, or name another folder"
            )
    elif not (resume or overwrite):
        raise FFPError(
            f"{folder} holds the state of a prune that was interrupted; go on with --resume (resume=True), or delete "
            "that folder to start anew"
        )


def remove_work(folder: Path) -> None:
    """Removes what a prune has written into its work folder, and the folder if there is nothing else in it."""
    if not holds_work(folder):
        return
    # The identity at last: as long as anything is left, it says whose that is.
    for file in (*_own_files(folder), folder / IDENTITY):
        with suppress(OSError):
            file.unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    # What is no JSON, and what is no text, are both a ValueError; an object that isn't ours may lack what it needs.
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise FFPError(f"{path} is damaged: {error}; delete it and resume") from None


def _own_files(folder: Path) -> list[Path]:
    """All that a prune writes into its work folder but the identity."""
    own = [file for file in folder.glob("*") if file.name.removesuffix(PARTIAL).endswith(ENDINGS)]
    return [*own, *folder.glob(IDENTITY + PARTIAL)]


def _read_state(folder: Path) -> dict[str, Any] | None:
    """What the entries in a folder depend on, `identity` and `notes`; `None` if it is no work folder."""
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
    # safetensors has an exception of its own for a disk that is full.
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise FFPError(f"{path.parent} can't be written: {error}; make room, then go on with --resume") from None
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
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
    """A number that changes with a model's config or weights, from a sample of every tensor."""
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED_ENTRIES)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]

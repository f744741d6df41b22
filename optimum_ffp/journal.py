"""What a prune has finished so far, in a folder: another process goes on from there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .errors import FFPError


IDENTITY = "identity.json"
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
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None, prefix: str = ""):
        self.folder, self.identity, self.prefix = folder, identity or {}, prefix

    @classmethod
    def open(cls, folder: str | os.PathLike, identity: Mapping[str, Any], resume: bool) -> "Journal":
        """The journal of one prune.

        Args:
            folder: Where it is or will be.
            identity: Everything that the results depend on: model, settings, versions of libraries.
            resume: Whether to go on from what is there.

        Raises:
            FFPError: If there is a journal and `resume` is off, or it belongs to something else.
        """
        path = Path(folder).expanduser().absolute()
        identity = json.loads(json.dumps(identity))
        if (path / IDENTITY).is_file():
            if not resume:
                raise _interrupted(folder)
            differences = list(_differences(json.loads((path / IDENTITY).read_text(encoding="utf-8")), identity))
            if differences:
                raise FFPError(
                    f"the state in {folder} is of another prune: {'; '.join(differences)}. Resume with what it was "
                    "begun with, or delete that folder to start anew"
                )
        for rest in path.glob("*.partial"):
            rest.unlink()
        return cls(path, identity)

    def part(self, *keys: Any) -> "Journal":
        """A journal of its own for what depends on these keys too, in the same folder."""
        text = json.dumps(keys, sort_keys=True)
        return Journal(self.folder, self.identity, f"{self.prefix}{hashlib.sha256(text.encode()).hexdigest()[:12]}-")

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or returned when it was last asked: anything that JSON holds."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{self.prefix}{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(compute())
        self._write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        # As JSON gives it back, so that a resumed prune sees the same.
        return json.loads(text)

    def tensors(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The same for tensors by name. What was kept comes back in host memory."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{self.prefix}{name}.safetensors"
        if not path.is_file():
            result = compute()
            kept = {key: tensor.detach().cpu().contiguous() for key, tensor in result.items()}
            self._write(path, lambda partial: save_file(kept, partial))
            return result
        try:
            return load_file(path)
        except SafetensorError as error:
            raise FFPError(f"{path} is damaged: {error}; delete it and resume") from None

    def remove(self) -> None:
        """Forgets everything."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        identity = self.folder / IDENTITY
        if not identity.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.identity, indent=2)
            _write_atomically(identity, lambda partial: partial.write_text(text, encoding="utf-8"))
        _write_atomically(path, write)


def check_work_folder(folder: str | os.PathLike, resume: bool, overwrite: bool) -> Path:
    """The folder for a journal, if a prune may begin with it.

    Args:
        folder: Where it is or will be.
        resume: Whether to go on from what is there.
        overwrite: Whether to throw away what is there.

    Raises:
        FFPError: If there is something and neither was asked for.
    """
    path = Path(folder).expanduser().absolute()
    if (path / IDENTITY).is_file() and not resume:
        if not overwrite:
            raise _interrupted(folder)
        shutil.rmtree(path)
    return path


def _interrupted(folder: str | os.PathLike) -> FFPError:
    return FFPError(
        f"{folder} holds the state of a prune that was interrupted; go on with --resume (resume=True), or delete that "
        "folder to start anew"
    )


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
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

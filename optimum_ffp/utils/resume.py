"""Work folders with intermediate results, from which an interrupted run can resume."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..errors import FFPError, convert_errors
from . import processes
from .folders import PARTIAL, abbreviate, atomic_file, check_writable, locked, resolve
from .json import to_json
from .profiling import STOPWATCH
from .record import Record


RUN = "run.json"
# Content of `run.json` that marks a work folder. Increment the number when entries change incompatibly.
FORMAT = "optimum-ffp work folder, 3"
VALUE, TENSORS = ".entry.json", ".entry.safetensors"
# Name of the tensor with the cost of the others.
COST = "cost"
CHECKPOINTS = "checkpoints"
# Entry with the calibration that was chosen by the free memory.
DECISION = "plan"
# Folder of weights that can't be mapped from the checkpoint, which are written while it is loaded.
WEIGHTS = "weights"
# Number of sampled entries per tensor for the fingerprint of a model.
SAMPLED_ENTRIES = 1024


@dataclass
class Journal:
    """Store of expensive results by name, each saved once computed.

    Pruning is deterministic: a run that reads saved results instead of computing them ends with the same weights. No
    entry is ever incomplete. Its name begins with that of its stage, and its cost is saved with it. In distributed
    runs all processes make the same calls and compute the same results, and the main process writes.

    Attributes:
        folder: Folder of the entries, created with the first entry; nothing is saved if `None`.
        identity: Everything that the entries depend on: model, settings, library versions.
        on_disk: Whether to return saved tensors as views of memory-mapped files, which take no additional memory.
        keys: Ending of the names of entries, for what they also depend on.
        counter: `TokenCounter` of the run, if it has one.
        lock: Holds the lock of an open journal until it is removed or this process ends.
    """

    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    keys: str = ""
    counter: Any = None
    lock: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(
        cls, folder: str | os.PathLike, identity: Mapping[str, Any], resume: bool, on_disk: bool = False
    ) -> "Journal":
        """Open the journal of a run in a folder, which need not exist, and lock that folder.

        Raises `FFPError` if there are entries and `resume` is off, they belong to another run or are in use by another
        process, or the folder contains other files.
        """
        path = resolve(folder)
        journal = cls(path, json.loads(to_json(identity)), on_disk)
        if processes.is_main():
            with ExitStack() as lock:
                lock.enter_context(locked(path))
                check_work_folder(folder, resume)
                before = _read_run(path).get("identity", journal.identity)
                if differences := "; ".join(_differences(before, journal.identity)):
                    raise FFPError(
                        f"the state in {folder} belongs to another run: {differences}. Resume with the same "
                        "settings and files, or delete that folder to start again"
                    )
                journal.lock = lock.pop_all()
        processes.wait()
        # The time before is no part of the first entry.
        STOPWATCH.lap()
        return journal

    def part(self, *keys: Any) -> "Journal":
        """Return a journal in the same folder for entries that also depend on the given keys."""
        digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
        return replace(self, keys=f"{self.keys}-{digest[:12]}", lock=ExitStack())

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the saved value of an entry, or compute and save it. It must be JSON-serializable."""
        if self.folder is None:
            return compute()
        path = self._path(self.folder, name, VALUE)
        if self.has(name):
            with _reading(path):
                value, cost = json.loads(path.read_text(encoding="utf-8"))
                self._continue_from(*cost)
                return value
        text = json.dumps([compute(), self._cost()])
        self._write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        # What a resumed run reads.
        return json.loads(text)[0]

    def tensors(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the saved tensors of an entry, in host memory, or compute and save them."""
        if self.folder is None:
            return compute()
        path = self._path(self.folder, name, TENSORS)
        reused = self.has(name)
        if not reused:
            result = compute()
            on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in result.items()}
            on_host[COST] = torch.tensor(self._cost(), dtype=torch.float64)
            self._write(path, lambda partial: save_file(on_host, partial))
            if not self.on_disk:
                return result
            del result, on_host
            processes.wait()
        with _reading(path):
            tensors = load_file(path)
            cost = tensors.pop(COST).tolist()
        if reused:
            self._continue_from(*cost)
        return tensors

    def mapped(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Like `tensors` if `on_disk` is set; otherwise compute the tensors without saving them."""
        return self.tensors(name, compute) if self.on_disk else compute()

    @property
    def checkpoints(self) -> Path | None:
        """Folder of the checkpoints of an unfinished training; `None` if nothing is saved."""
        return self.folder and self.folder / CHECKPOINTS / self.keys

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of a training that has finished, after all processes have read the best weights."""
        processes.wait()
        if self.checkpoints is not None and processes.is_main():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Return whether an entry is saved."""
        folder = self.folder
        if folder is None:
            return False
        paths = [self._path(folder, name, suffix) for suffix in (VALUE, TENSORS)]
        return processes.on_main(lambda: any(path.is_file() for path in paths))

    def remove(self) -> None:
        """Delete all entries, and the folder if it contains no other files."""
        folder = self.folder
        if folder is not None and processes.is_main() and _read_run(folder):
            for name in (CHECKPOINTS, WEIGHTS):
                shutil.rmtree(folder / name, ignore_errors=True)
            # Deleted last, since it marks the remaining files as a work folder's.
            for file in (*folder.glob("*.entry.*"), folder / RUN):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        self.lock.close()

    def _path(self, folder: Path, name: str, suffix: str) -> Path:
        return folder / f"{name}{self.keys}{suffix}"

    def _cost(self) -> list[float]:
        # All processes have read as much, and a run may resume with another number of them.
        return [STOPWATCH.lap(), self.counter.layer_tokens * processes.count() if self.counter else 0]

    def _continue_from(self, seconds: float, tokens: float) -> None:
        STOPWATCH.lap(reused=seconds)
        if self.counter:
            self.counter.layer_tokens = max(self.counter.layer_tokens, round(tokens) // processes.count())

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        if not processes.is_main():
            return
        run = path.parent / RUN
        try:
            if not run.is_file():
                content = to_json({"format": FORMAT, "id": uuid4().hex, "identity": self.identity}, indent=2)
                with atomic_file(run) as partial:
                    partial.write_text(content, encoding="utf-8")
            with atomic_file(path) as partial:
                write(partial)
        # safetensors raises its own exception if the disk is full.
        except (OSError, SafetensorError) as error:
            raise FFPError(
                f"{path.parent} can't be written: {error}; free disk space, then resume with --resume"
            ) from None


def saved_decision(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the calibration and rank of adapters that an interrupted prune has chosen, if there is one."""
    path = resolve(folder) / f"{DECISION}{VALUE}"
    return processes.on_main(lambda: json.loads(path.read_text(encoding="utf-8"))[0] if path.is_file() else None)


def work_folder_of(output: str | os.PathLike) -> Path:
    """Return the work folder for an output folder, next to it, where the same command finds it again."""
    return Path(f"{resolve(output)}.work")


def run_id(folder: Path | None) -> str | None:
    """Return the id of the run that a work folder belongs to, which records of its outputs contain."""
    return _read_run(folder).get("id") if folder else None


def has_written(folder: Path | None, output: str | os.PathLike) -> bool:
    """Return whether the run of a work folder has written an output, which it may then replace when resumed."""
    run, record = run_id(folder), Record.read(output)
    return run is not None and record is not None and record.run == run


def begin_work(folder: Path, resume: bool) -> None:
    """Delete the entries of a work folder unless a run resumes from them."""
    with locked(folder):
        if not resume:
            Journal(folder).remove()
        elif not _read_run(folder):
            print(f"nothing to resume in {folder}; starting from the beginning", file=sys.stderr)
        else:
            print(f"resuming from {folder}, with results of: {', '.join(_saved_stages(folder))}", file=sys.stderr)


def _saved_stages(folder: Path) -> list[str]:
    """Return the stages with entries, in the order in which they were saved."""
    files = sorted(folder.glob("*.entry.*"), key=lambda file: file.stat().st_mtime_ns)
    training = ["training"] if any(folder.glob(f"{CHECKPOINTS}/**/checkpoint-*")) else []
    return [*dict.fromkeys(file.name.partition(".")[0].partition("-")[0] for file in files), *training]


def check_work_folder(folder: str | os.PathLike, resume: bool, overwrite: bool = False) -> None:
    """Raise `FFPError` if a folder contains other files, or entries of a run that is neither resumed nor discarded."""
    path = resolve(folder)
    if not path.is_dir():
        check_writable(path / RUN, folder)
    elif _read_run(path):
        if not (resume or overwrite):
            raise FFPError(
                f"{folder} contains the state of an earlier run; resume it with --resume (resume=True), or start "
                "over with --overwrite, or by deleting that folder"
            )
    # A process may have been killed while writing that file.
    elif foreign := [entry.name for entry in path.iterdir() if entry.name not in (f".{RUN}{PARTIAL}", WEIGHTS)]:
        raise FFPError(
            f"{folder} is not a work folder of optimum-ffp: it contains {abbreviate(foreign)}; move it away, or name "
            "another folder"
        )


def _read_run(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json` in a work folder; empty for other folders."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) and run.get("format") == FORMAT else {}


def _reading(path: Path) -> AbstractContextManager[None]:
    return convert_errors(
        lambda error: f"{path} is corrupt: {error}; delete it and resume",
        passes=lambda error: isinstance(error, MemoryError),
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        old, new, label = before.get(key), after.get(key), f"{prefix}{key}"
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

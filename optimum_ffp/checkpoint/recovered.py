"""Checkpoints of recovered models: the pruned checkpoint with new weights and the record of the recovery."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.prune import GRADIENT_COST
from ..config.texts import Text
from ..errors import FFPError, one_line
from ..hub.naming import short_name, without_folders
from ..hub.record import prune_record
from ..utils.folders import check_links, expand, list_files, read_record, recorded_files
from .plots import write_recovery
from .result import perplexities_by_text
from .saving import save_model, save_tokenizer, write_checkpoint


# Prefix of files of the pruned model that are not copied: weights and code.
NOT_COPIED = "model"


@dataclass(frozen=True)
class RecoveryRecord:
    """Record of a recovery.

    Attributes:
        options: Options, from `RecoveryConfig.to_dict`.
        source: Folder or Hub id of the pruned model.
        teacher: Hub id, folder or file of the teacher.
        dense_teacher: Whether that is the dense model that the pruned model was created from.
        window_length: Tokens per window.
        windows_per_step: Windows per optimizer step over all processes.
        passes: Number of passes over each text.
        curve: One record per evaluation, the first before training: `step`, `tokens`, and on held-out windows `kl`
            (divergence from the teacher, in nats per token) and `perplexity`.
        kept: The record in `curve` for the saved weights, which has the lowest perplexity.
        held_out: Description of the held-out windows.
        tests: Description of the test windows of each text.
        losses: Losses of every test window of every text, in nats per token, by model: `dense` (the teacher), `pruned`
            (before this training) and `recovered`.
        samples: What the recovered model writes greedily, by prompt.
        compute_dtypes: Compute dtypes of the losses on test windows by model: `dense` and `pruned`, which is also that
            of the recovered model.
        dtype: Dtype of the saved weights.
        bf16: Whether training used bfloat16.
        seconds: Time of the training.
        processes: Number of processes.
        versions: Versions of packages.
        request: Digest of the command, by which `--resume` recognizes its result.
    """

    options: dict[str, Any]
    source: str
    teacher: str
    dense_teacher: bool
    window_length: int
    windows_per_step: int
    passes: dict[str, float]
    curve: list[dict[str, Any]]
    kept: dict[str, Any]
    held_out: dict[str, Any]
    tests: list[dict[str, Any]]
    losses: dict[str, list[list[float]]]
    samples: dict[str, str]
    compute_dtypes: dict[str, str]
    dtype: str
    bf16: bool
    seconds: float
    processes: int
    versions: dict[str, str]
    request: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the model was trained on."""
        return self.curve[-1]["tokens"]

    @property
    def all_tokens(self) -> int:
        """Tokens in forward passes: one of the dense model, and three for training the pruned one."""
        return self.tokens * (1 + GRADIENT_COST)

    @property
    def figures(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """Description of the test windows of each text, with perplexities by model, as in `losses`."""
        return [*zip(self.tests, perplexities_by_text(self.losses))]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready record for `ffp_config.json`."""
        record = asdict(self)
        for name in ("losses", "tests"):
            del record[name]
        first, *rest = (figures | test for test, figures in self.figures)
        record["source"] = short_name(self.source)
        record["passes"] = {Text(name).published: count for name, count in self.passes.items()}
        return record | {"tokens": self.tokens, "perplexity": first, "other_texts": rest}


def save_recovered(
    record: RecoveryRecord,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    overwrite: bool = False,
    hub: Mapping[str, Any] | None = None,
    work_folder: Path | None = None,
) -> Path:
    """Write the checkpoint of a recovered model as `write_checkpoint` does.

    All other files of the pruned checkpoint, which must still exist, are copied: policy, agent, log, plots and report.
    `ffp_config.json` and the card are extended.
    """
    source = source_folder(record.source, hub or {})
    return write_checkpoint(partial(_write, record, model, tokenizer, source), directory, overwrite, work_folder)


def source_folder(source: str, hub: Mapping[str, Any]) -> Path:
    """Return a folder with all files of a pruned checkpoint, except weights if it is on the Hub.

    Raises:
        FFPError: If they can't be read, or are links to files outside a folder.
    """
    path = expand(source)
    if path.is_dir():
        check_links(path, _copied_files(path, read_record(path)))
        return path
    patterns = [*map(escape, recorded_files(prune_record(source, **hub)))]
    try:
        snapshot = snapshot_download(source, allow_patterns=patterns, ignore_patterns=f"{NOT_COPIED}*", **hub)
    except (OSError, ValueError) as error:
        raise FFPError(f"the files of {source} can't be read: {one_line(error)}") from None
    return Path(snapshot)


def _copied_files(source: Path, record: dict[str, Any]) -> set[str]:
    return {name for name in recorded_files(record) & list_files(source) if not name.startswith(NOT_COPIED)}


def copy_files(source: Path, record: dict[str, Any], folder: Path, written: set[str]) -> None:
    """Copy the files of a pruned checkpoint to another folder, except its weights and code and the `written` ones."""
    for name in _copied_files(source, record) - written:
        (folder / name).parent.mkdir(exist_ok=True)
        # Don't copy permissions: files may be read-only, and some are overwritten.
        shutil.copyfile(source / name, folder / name)


def _write(
    recovery: RecoveryRecord, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, folder: Path
) -> dict[str, Any]:
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)
    record = read_record(source)
    copy_files(source, record, folder, list_files(folder))
    recoveries = [*record.get("recovery", []), without_folders(recovery.to_dict())]
    write_recovery(
        recovery.curve, recovery.kept, recoveries[-1]["held_out"], folder / f"recovery-{len(recoveries)}.png"
    )
    return record | {"recovery": recoveries}

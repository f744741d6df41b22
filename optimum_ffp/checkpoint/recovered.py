"""Checkpoints of recovered models: the pruned checkpoint with new weights and the record of the recovery."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import Text
from ..errors import FFPError, one_line
from ..hub.naming import short_name, without_folders
from ..hub.record import require_record
from ..utils.folders import check_links, expand, list_files
from ..utils.record import Record, RecoveryRecord, damage_errors
from .card import render_card
from .plots import write_recovery
from .saving import save_model, save_tokenizer, write_checkpoint


# Prefix of files of the pruned model that are not copied: weights and code.
NOT_COPIED = "model"


def save_recovered(
    record: RecoveryRecord,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    overwrite: bool = False,
    hub: Mapping[str, Any] | None = None,
    work_folder: Path | None = None,
) -> Path:
    """Write the checkpoint of a recovered model as `write_checkpoint` does, with an extended record and card.

    All other files of the pruned checkpoint, which must still exist, are copied: policy, agent, log, plots and report.
    """
    source = source_folder(record.source, hub or {})
    return write_checkpoint(partial(_write, record, model, tokenizer, source), directory, overwrite, work_folder)


def source_folder(source: str, hub: Mapping[str, Any]) -> Path:
    """Return a folder with all files of a pruned checkpoint, except weights if it is on the Hub.

    Raises `FFPError` if they can't be read, or are links to files outside a folder.
    """
    path, record = expand(source), require_record(source, **hub)
    # Before the result is computed, whose card has the same entries.
    with damage_errors(source):
        render_card(record, source)
    if path.is_dir():
        check_links(path, _copied_files(path, record))
        return path
    patterns = [*map(escape, record.files)]
    try:
        snapshot = snapshot_download(source, allow_patterns=patterns, ignore_patterns=f"{NOT_COPIED}*", **hub)
    except (OSError, ValueError) as error:
        raise FFPError(f"the files of {source} can't be read: {one_line(error)}") from None
    return Path(snapshot)


def _copied_files(source: Path, record: Record) -> set[str]:
    return {name for name in list_files(source).intersection(record.files) if not name.startswith(NOT_COPIED)}


def copy_files(source: Path, record: Record, folder: Path, written: set[str]) -> None:
    """Copy the files of a pruned checkpoint to another folder, except its weights and code and the `written` ones."""
    for name in _copied_files(source, record) - written:
        (folder / name).parent.mkdir(exist_ok=True)
        # Don't copy permissions: files may be read-only, and some are overwritten.
        shutil.copyfile(source / name, folder / name)


def _write(
    recovery: RecoveryRecord, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, folder: Path
) -> Record:
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)
    record = require_record(source)
    copy_files(source, record, folder, list_files(folder))
    step = published(recovery)
    recoveries = *record.recovery, step
    write_recovery(step.curve, step.kept, step.held_out, folder / f"recovery-{len(recoveries)}.png")
    return replace(record, recovery=recoveries)


def published(recovery: RecoveryRecord) -> RecoveryRecord:
    """Return the record of a recovery without local folders."""
    passes = {Text(name).published: count for name, count in recovery.passes.items()}
    named = replace(recovery, source=short_name(recovery.source), passes=passes)
    return RecoveryRecord.from_dict(without_folders(named.to_dict()))

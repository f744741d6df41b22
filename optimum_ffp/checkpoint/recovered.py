"""Writes a recovered model: the pruned checkpoint with other weights, and what its recovery has done."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.prune import GRADIENT_COST
from ..config.texts import Text
from ..errors import FFPError, one_line
from ..hub.naming import short_name, without_folders
from ..hub.record import prune_record
from ..utils.folders import expand, file_patterns, list_files, recorded_files
from .plots import write_recovery
from .result import perplexities_by_text
from .saving import load_record, save_model, save_tokenizer, write_checkpoint


# Beginnings of the names of files of a pruned model that a recovered one has others of: weights, and an adapter that
# earlier versions have written.
NOT_COPIED = ("model", "adapter/")


@dataclass(frozen=True)
class RecoveryRecord:
    """What a recovery has done.

    Attributes:
        options: Options, as of `RecoveryConfig.to_dict`.
        source: Folder or Hub id of the pruned model.
        teacher: Hub id, folder or file of the dense model.
        window_length: Tokens per window.
        windows_per_step: Windows per step of the optimizer, of all processes.
        passes: How often each text was read.
        curve: One record per evaluation: `step`, `tokens`, and on held-out windows `kl` (divergence from the dense
            model, in nats per token) and `perplexity`. The first is before the training.
        kept: The record in `curve` of the weights that are saved.
        held_out: Description of the held-out windows.
        tests: Description of the test windows of each text.
        losses: Losses of every test window of every text, in nats per token, by model: `dense`, `pruned`, which is
            the model before this training, and `recovered`.
        compute_dtypes: Dtypes that losses on test windows were computed in, by model: `dense` and `pruned`; the
            recovered one in that of the pruned one.
        dtype: Dtype of the saved weights.
        bf16: Whether it was trained in bfloat16.
        seconds: Time of the training.
        processes: Number of processes.
        versions: Versions of packages.
    """

    options: dict[str, Any]
    source: str
    teacher: str
    window_length: int
    windows_per_step: int
    passes: dict[str, float]
    curve: list[dict[str, Any]]
    kept: dict[str, Any]
    held_out: dict[str, Any]
    tests: list[dict[str, Any]]
    losses: dict[str, list[list[float]]]
    compute_dtypes: dict[str, str]
    dtype: str
    bf16: bool
    seconds: float
    processes: int
    versions: dict[str, str]

    @property
    def tokens(self) -> int:
        """Tokens that the model was trained on."""
        return self.curve[-1]["tokens"]

    @property
    def all_tokens(self) -> int:
        """Tokens in forward passes: one of the dense model, and three for the training of the pruned one."""
        return self.tokens * (1 + GRADIENT_COST)

    @property
    def figures(self) -> list[tuple[dict[str, Any], dict[str, float]]]:
        """Description of the test windows of each text, and the perplexities on them by model, as in `losses`."""
        return [*zip(self.tests, perplexities_by_text(self.losses))]

    @property
    def perplexities(self) -> dict[str, dict[str, float]]:
        """Perplexities by text, and by model as in `losses`."""
        return {test["dataset"]: figures for test, figures in self.figures}

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready record in `ffp_config.json`."""
        record = asdict(self)
        for name in ("losses", "tests"):
            del record[name]
        first, *others = (figures | test for test, figures in self.figures)
        record["source"] = short_name(self.source)
        record["passes"] = {Text(name).published: count for name, count in self.passes.items()}
        return record | {"tokens": self.tokens, "perplexity": first, "other_texts": others}


def save_recovered(
    record: RecoveryRecord,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | os.PathLike,
    overwrite: bool = False,
    hub: Mapping[str, Any] | None = None,
    work_folder: Path | None = None,
) -> Path:
    """Write the checkpoint of a recovered model.

    All that the pruned model's folder has, policy, agent, log, plots and report, is copied; `ffp_config.json` and the
    card go on from it.

    Args:
        record: What the recovery has done.
        model: The recovered model.
        tokenizer: Its tokenizer.
        directory: Folder to write. It is written completely or not at all.
        overwrite: Whether to replace an empty folder, or a checkpoint of optimum-ffp without other files.
        hub: `revision`, `token` of the pruned model.
        work_folder: Folder of finished work. A checkpoint that the same run has written is replaced in any case.

    Returns:
        Path of the folder.

    Raises:
        FFPError: If the folder exists and may not be replaced, or can't be written, or files of the pruned model are
            not there any more.
    """
    source = source_folder(record.source, hub or {})
    return write_checkpoint(partial(_write, record, model, tokenizer, source), directory, overwrite, work_folder)


def source_folder(source: str, hub: Mapping[str, Any]) -> Path:
    """Return a folder with all files of a pruned model but its weights.

    Args:
        source: Folder or Hub id.
        hub: `revision`, `token`.

    Raises:
        FFPError: If they can't be read.
    """
    path = expand(source)
    if path.is_dir():
        return path
    patterns = file_patterns(prune_record(source, **hub))
    weights = [f"{prefix}*" for prefix in NOT_COPIED]
    try:
        snapshot = snapshot_download(source, allow_patterns=patterns, ignore_patterns=weights, **hub)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FFPError(f"the files of {source} can't be read: {one_line(error)}") from None
    return Path(snapshot)


def _write(
    recovery: RecoveryRecord, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path, folder: Path
) -> dict[str, Any]:
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)
    record = load_record(source)
    for name in recorded_files(record, list_files(source)) - list_files(folder):
        if not name.startswith(NOT_COPIED):
            (folder / name).parent.mkdir(exist_ok=True)
            # Without its permissions: it may be read-only, and some files are written anew.
            shutil.copyfile(source / name, folder / name)
    recoveries = [*record.get("recovery", []), without_folders(recovery.to_dict())]
    write_recovery(recovery.curve, recovery.held_out, folder / f"recovery-{len(recoveries)}.png")
    return record | {"recovery": recoveries}

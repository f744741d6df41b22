"""Saves a recovered model: the pruned checkpoint with other weights, and the record, card and plot of its recovery."""

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.prune import GRADIENT_COST
from ..config.texts import TextMix
from ..errors import FFPError, one_line
from ..hub.naming import dataset_name, escape, short_name, without_folders
from ..hub.record import prune_record
from ..hub.upload import name_repository
from ..utils.folders import RECORD, expand, file_patterns, list_files, read_record, recorded_files
from ..utils.json import write_json
from .card import evaluation_results, option_words
from .plots import RECOVERY_PLOT, write_recovery
from .result import perplexities_by_text
from .saving import save_model, save_tokenizer, write_folder


SECTION = "recovery_section.md"
# In a subfolder, as the agent is: what lies beside the weights would be loaded with them.
ADAPTER = "adapter"
# Beginnings of the names of files of a pruned model that a recovered one has others of.
NOT_COPIED = ("model", f"{ADAPTER}/")
# Heading of the card of the pruned model, which follows the section on the recovery.
BEFORE = "## Pruning"
REPORT = "[report.html](report.html) has all figures"


@dataclass(frozen=True)
class RecoveryRecord:
    """What a recovery has done.

    Attributes:
        options: Options, as of `RecoveryConfig.to_dict`.
        stated: Options that differ from the defaults of the preset, and the teacher if it was named.
        source: Folder or Hub id of the pruned model.
        teacher: Hub id, folder or file of the dense model.
        window_length: Tokens per window.
        windows_per_step: Windows per step of the optimiser, of all processes.
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
    stated: dict[str, Any]
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
        for name in ("losses", "tests", "source", "stated"):
            del record[name]
        first, *others = (figures | test for test, figures in self.figures)
        record["passes"] = {short_name(name): count for name, count in self.passes.items()}
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
    """Writes the checkpoint of a recovered model.

    All that the pruned model's folder has, policy, agent, log, plots and report, is kept; `ffp_config.json` and the
    card go on from it.

    Args:
        record: What the recovery has done.
        model: The recovered model.
        tokenizer: Its tokenizer.
        directory: Folder to write. It is written completely or not at all.
        overwrite: Whether to replace an empty folder, or a checkpoint of optimum-ffp without other files.
        hub: `revision`, `token` of the pruned model.
        work_folder: Folder of finished work, for the error.

    Returns:
        Path of the folder.

    Raises:
        FFPError: If the folder exists and may not be replaced, or can't be written, or files of the pruned model are
            not there any more.
    """
    source = source_folder(record.source, hub or {})
    write = partial(_write, record, model, tokenizer, source)
    return write_folder(write, directory, overwrite, work_folder)


def name_before(earlier: int) -> str:
    """What the model is called as it was before a recovery, by the number of those that were earlier."""
    return "before this training" if earlier else "pruned"


def recovery_command(record: RecoveryRecord) -> str:
    """The command that repeats a recovery."""
    words = option_words(without_folders(record.stated))
    return " ".join(["optimum-cli ffp recover -m", shlex.quote(short_name(record.source)), "OUT", *words])


def source_folder(source: str, hub: Mapping[str, Any]) -> Path:
    """Folder with all files of a pruned model but its weights.

    Args:
        source: Folder or Hub id.
        hub: `revision`, `token`.

    Raises:
        FFPError: If they can't be read.
    """
    path = expand(source)
    if path.is_dir():
        return path
    try:
        return Path(
            snapshot_download(
                source,
                allow_patterns=file_patterns(prune_record(source, **hub)),
                ignore_patterns=[f"{prefix}*" for prefix in NOT_COPIED],
                **hub,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FFPError(f"the files of {source} can't be read: {one_line(error)}") from None


def _write(
    record: RecoveryRecord,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    folder: Path,
    name: str,
) -> None:
    # Some of its files may have names that no other checkpoint has.
    save_tokenizer(tokenizer, folder)
    save_model(model, folder)
    content = read_record(source)
    for file in recorded_files(content, list_files(source)) - list_files(folder):
        if not file.startswith(NOT_COPIED):
            (folder / file).parent.mkdir(exist_ok=True)
            # Without its permissions: it may be read-only, and some files are written anew.
            shutil.copyfile(source / file, folder / file)
    earlier = content.get("recovery", [])
    if earlier:
        _number_plot(folder, len(earlier))
    content["recovery"] = [*earlier, without_folders(record.to_dict())]
    write_json(folder / RECORD, content)
    write_recovery(record.curve, record.held_out, folder / RECOVERY_PLOT)
    if (folder / "README.md").is_file():
        _write_card(record, folder / "README.md", name, len(earlier))


def _number_plot(folder: Path, number: int) -> None:
    """Names the plot of the last recovery by its number, in its section of the card too."""
    name = f"{Path(RECOVERY_PLOT).stem}-{number}.png"
    if not (folder / RECOVERY_PLOT).is_file():
        return
    (folder / RECOVERY_PLOT).rename(folder / name)
    card = folder / "README.md"
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(f"({RECOVERY_PLOT})", f"({name})"), encoding="utf-8")


def _write_card(record: RecoveryRecord, path: Path, name: str, earlier: int) -> None:
    # The commands of the new section name the pruned model.
    renamed = name_repository(path.read_text(encoding="utf-8"), f"./{name}")
    card = ModelCard(renamed, ignore_metadata_errors=True)
    environment = Environment(
        loader=PackageLoader(__package__, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = lambda name: escape(dataset_name(name))
    fields = {"record": record, "options": record.options, "figures": record.figures, "plot": RECOVERY_PLOT}
    fields |= {"teacher": short_name(record.teacher), "command": recovery_command(record)}
    fields |= {"earlier": earlier, "before": name_before(earlier)}
    section = environment.get_template(SECTION).render(fields)
    title, _, rest = card.text.lstrip().replace(f"{REPORT} in one file.", f"{REPORT} of the pruning.").partition("\n")
    title = title.removesuffix(", recovered")
    # Of an earlier recovery the section stays, below this one.
    heading = f"## Recovery {earlier}" if earlier else BEFORE
    card.text = f"\n{title}, recovered\n\n{section}\n{heading}\n{rest}"
    texts = {text.hub_dataset[0] for text in TextMix.parse(record.options["dataset"]) if text.hub_dataset}
    named = card.data.datasets or []
    card.data.datasets = sorted({*([named] if isinstance(named, str) else named), *texts}) or None
    card.data.eval_results = [
        result for test, found in record.figures for result in evaluation_results(test, found["recovered"])
    ]
    # Without it there can be no results.
    card.data.model_name = card.data.model_name or title.lstrip("# ")
    card.save(path)

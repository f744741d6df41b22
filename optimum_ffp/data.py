"""Text from wherever it is, as windows of tokens: what to calibrate on, what to search on, what to report on."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .config import FFPConfig
from .errors import FFPError
from .sampling import sample_from_model


NAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": ("allenai/c4", "en"),
}
SPLITS = {"calibration": "train", "search": "validation", "test": "test"}
SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# Where one text has to serve all three roles, these parts of its windows, in this order.
SHARES = {"calibration": 0.6, "search": 0.2, "test": 0.2}
# A stream is read only as far as its windows need, at this many characters a token (English text has 4 to 5).
CHARACTERS_PER_TOKEN = 8
ALTERNATIVES = "name a local .txt, .jsonl or .parquet file, a folder with train, validation and test, or 'self'"


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of consecutive tokens, and where they come from.

    Attributes:
        tokens: Token ids, shape `[windows, window length]`.
        dataset: What the user named.
        split: Which part of it.
    """

    tokens: torch.Tensor
    dataset: str
    split: str

    def __len__(self) -> int:
        return len(self.tokens)

    def describe(self) -> dict[str, str | int]:
        """What has to stand beside every figure measured on these windows."""
        return {"dataset": self.dataset, "split": self.split, "windows": len(self), "window_length": self.length}

    @property
    def length(self) -> int:
        """Tokens a window."""
        return self.tokens.shape[1]

    def first(self, count: int) -> "Windows":
        """The first windows, or all if there are fewer."""
        return Windows(self.tokens[:count], self.dataset, self.split)


@dataclass(frozen=True)
class DataSplits:
    """Disjoint windows for the three roles."""

    calibration: Windows
    search: Windows
    test: Windows

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All windows as JSON has them."""
        return {role: vars(windows) | {"tokens": windows.tokens.tolist()} for role, windows in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, dict[str, Any]]) -> "DataSplits":
        """What `to_dict` returned."""
        return cls(**{role: Windows(**one | {"tokens": torch.tensor(one["tokens"])}) for role, one in data.items()})


@dataclass(frozen=True)
class DataRequest:
    """How many windows of what length each role wants; `test=None` takes all there are.

    Attributes:
        length: Tokens a window.
        calibration, search, test: Number of windows.
        seed: Picks the calibration and search windows. Test windows are the first.
        self_share: Share of the calibration and search windows that the model writes itself.
    """

    length: int
    calibration: int
    search: int
    test: int | None
    seed: int
    self_share: float = 0.0

    @classmethod
    def of(cls, config: FFPConfig) -> "DataRequest":
        """What a prune wants."""
        return cls(
            length=config.seq_len,
            calibration=config.num_samples,
            search=config.search_samples,
            test=config.eval_samples,
            seed=config.seed,
            self_share=config.self_share,
        )

    def written(self, dataset: str) -> dict[str, int]:
        """Windows of each role that the model has to write, if there is as much text as is asked for."""
        if dataset == "self":
            return {"calibration": self.calibration, "search": self.search, "test": self.test or self.search}
        wanted = {"calibration": self.calibration, "search": self.search}
        return {role: min(round(self.self_share * count), max(0, count - 1)) for role, count in wanted.items()}

    def all_written(self, dataset: str) -> int:
        """All windows that the model has to write."""
        return sum(self.written(dataset).values())


def load_windows(
    dataset: str,
    eval_dataset: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: DataRequest,
) -> DataSplits:
    """Windows for all roles.

    A dataset with splits calibrates on train, searches on validation and reports on test. One file, or a dataset
    with one split, is cut into disjoint parts. `self` samples the text from the model. Beside other text the
    model writes `request.self_share` of the windows for calibration and search, fewer where there is less text.

    Args:
        dataset: `wikitext2`, `c4`, a Hub id (`id` or `id:config`), a file, a folder, or `self`.
        eval_dataset: The same for the test windows, if they should come from elsewhere.
        tokenizer: The model's tokenizer.
        model: The model, for `self`.
        request: How much of it.

    Raises:
        FFPError: If the data can't be found or read, or is too short, or the model can't write any.
    """
    own = {} if dataset == "self" else request.written(dataset)
    text = replace(request, **{role: getattr(request, role) - count for role, count in own.items()})
    roles = _load_roles(dataset, tokenizer, model, text)
    if eval_dataset and eval_dataset != dataset:
        roles["test"] = _load_roles(eval_dataset, tokenizer, model, request)["test"]
    # Of less text than was asked for the model's own keeps its share.
    counts = {role: round(count * len(roles[role]) / getattr(text, role)) for role, count in own.items() if count}
    counts = {role: count for role, count in counts.items() if count}
    if counts:
        written = sample_from_model(model, tokenizer, sum(counts.values()), request.length, request.seed)
        roles |= {role: _mix(roles[role], part, request.seed) for role, part in _divide(written, counts).items()}
    return DataSplits(**roles)


def _mix(text: Windows, written: torch.Tensor, seed: int) -> Windows:
    order = torch.randperm(len(text) + len(written), generator=torch.Generator().manual_seed(seed))
    split = f"{text.split} and {len(written)} sampled from the model"
    return Windows(torch.cat([text.tokens, written])[order], text.dataset, split)


def _load_roles(
    dataset: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest
) -> dict[str, Windows]:
    wanted = {"calibration": request.calibration, "search": request.search, "test": request.test}
    if dataset == "self":
        counts = request.written(dataset)
        written = sample_from_model(model, tokenizer, sum(counts.values()), request.length, request.seed)
        parts = _divide(written, counts)
        labels = {role: f"{role} part of text sampled from the model" for role in SPLITS}
    else:
        splits = {
            split: cut(tokenize(text, tokenizer), request.length, f"{dataset} ({split})")
            for split, text in read_splits(dataset, request).items()
        }
        if len(splits) > 1:
            parts, labels = {role: splits[split] for role, split in SPLITS.items()}, SPLITS
        else:
            (split, windows), *_ = splits.items()
            parts = _divide(windows, _share_out(len(windows), f"{dataset} with seq_len {request.length}"))
            labels = {role: f"{role} part of {split}" for role in SPLITS}
    generator = torch.Generator().manual_seed(request.seed)
    result = {}
    for role, windows in parts.items():
        if role != "test":
            windows = windows[torch.randperm(len(windows), generator=generator)]
        result[role] = Windows(windows[: wanted[role]], dataset, labels[role])
    return result


def _share_out(count: int, label: str) -> dict[str, int]:
    if count < len(SHARES):
        raise FFPError(
            f"{label} gives {count} window(s); calibration, search and test need one each: use more text or a "
            "smaller seq_len"
        )
    shares = {role: max(1, round(share * count)) for role, share in SHARES.items()}
    return shares | {"calibration": count - shares["search"] - shares["test"]}


def _divide(windows: torch.Tensor, counts: dict[str, int]) -> dict[str, torch.Tensor]:
    return dict(zip(counts, windows.split(list(counts.values()))))


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Token ids of a whole text, shape `[tokens]`, without special tokens."""
    # verbose=False: a text longer than the model's context is meant here, since it is cut into windows.
    return tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False).input_ids[0]


def cut(tokens: torch.Tensor, length: int, label: str) -> torch.Tensor:
    """As many whole windows as there are, shape `[windows, length]`. Raises `FFPError` if there is none."""
    if len(tokens) < length:
        raise FFPError(f"{label} has {len(tokens)} tokens, less than one window of {length}; lower seq_len")
    count = len(tokens) // length
    return tokens[: count * length].view(count, length)


def read_splits(dataset: str, request: DataRequest) -> dict[str, str]:
    """The text of every split of a dataset: rows joined by blank lines. One split alone if there is no more.

    Raises:
        FFPError: If the data can't be found or read.
    """
    files = find_files(dataset)
    if files:
        return {split: join_rows(_read_rows(file)) for split, file in files.items()}
    return _read_from_hub(dataset, request)


def find_files(dataset: str) -> dict[str, Path]:
    """Local files of a dataset by split, or one file by its name; none if the dataset is not local.

    Raises:
        FFPError: If there is no such file or folder, or a folder lacks a split.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        return {split: _split_file(path, split) for split in SPLITS.values()}
    if path.is_file():
        return {path.name: path}
    if path.suffix in SUFFIXES or dataset.startswith((".", "/", "~")):
        raise FFPError(f"there is no file or folder {dataset}; {ALTERNATIVES}")
    return {}


def hub_source(dataset: str) -> tuple[str, str | None]:
    """Repository and configuration of a dataset on the Hub."""
    name, _, config = dataset.partition(":")
    return NAMED.get(name, (name, config or None))


def check_window_length(length: int, config: PretrainedConfig) -> None:
    """Raises `FFPError` if windows are longer than a model with this config knows positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise FFPError(f"seq_len {length} is more than the {limit} positions that the model knows")


def join_rows(rows: Iterable[str]) -> str:
    """Rows joined by blank lines, as perplexity on WikiText-2 is measured."""
    return "\n\n".join(rows)


def _split_file(folder: Path, split: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise FFPError(
        f"{folder} has no {split} file ({', '.join(split + suffix for suffix in SUFFIXES)}); it holds {found}. "
        "Give one file instead of the folder to have it split"
    )


def check_suffix(path: Path) -> None:
    """Raises `FFPError` if a file's name doesn't end as one that can be read."""
    if path.suffix not in SUFFIXES:
        raise FFPError(f"{path} is no {', '.join(SUFFIXES)} file; convert it, or give it one of these endings")


def _read_rows(path: Path) -> list[str]:
    """Rows of a local file. A line of a .txt is a row, with its line end unless it is blank, as in WikiText-2."""
    check_suffix(path)
    try:
        if path.suffix == ".txt":
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [line + "\n" if line.strip() else "" for line in lines]
            if rows and not rows[-1]:
                rows.pop()
        else:
            import datasets

            # It logs a traceback of its own for a file that it can't parse.
            datasets.utils.logging.set_verbosity(logging.CRITICAL)
            table = datasets.load_dataset(SUFFIXES[path.suffix], data_files=str(path), split="train")
            rows = table[_text_column(table.column_names, table.features, str(path))]
    except FFPError:
        raise
    except Exception as error:  # Each reader has exceptions of its own; the user needs the file and the reason.
        raise FFPError(f"{path} can't be read: {_first_line(error)}") from None
    rows = [row for row in rows if row is not None]
    if not any(row.strip() for row in rows):
        raise FFPError(f"{path} holds no text")
    return list(rows)


def _text_column(names: list[str], features: dict, label: str) -> str:
    strings = [name for name in names if getattr(features[name], "dtype", None) in ("string", "large_string")]
    if "text" in strings:
        return "text"
    if len(strings) == 1:
        return strings[0]
    raise FFPError(f"{label} has the columns {', '.join(names)}; one of them must be called 'text' and hold strings")


def _read_from_hub(dataset: str, request: DataRequest) -> dict[str, str]:
    from datasets import get_dataset_split_names, load_dataset

    repository, config = hub_source(dataset)
    try:
        available = get_dataset_split_names(repository, config)
        splits = [split for split in SPLITS.values() if split in available]
        if len(splits) < len(SPLITS):
            splits = ["train"] if "train" in available else available[:1]
        texts = {}
        for split in splits:
            stream = load_dataset(repository, config, split=split, streaming=True)
            head = next(iter(stream))
            column = _text_column(list(head), stream.features or {}, dataset) if "text" not in head else "text"
            texts[split] = join_rows(_take(stream, column, request))
        return texts
    except FFPError:
        raise
    except Exception as error:  # The hub's clients raise dozens of types; all mean that the data isn't to be had.
        reason = "offline mode is on" if os.environ.get("HF_HUB_OFFLINE") == "1" else _first_line(error)
        raise FFPError(f"dataset {dataset!r} can't be read from the Hub ({reason}); {ALTERNATIVES}") from None


def _take(stream: Iterable[dict], column: str, request: DataRequest) -> Iterable[str]:
    windows = 4 * sum(count or 100 for count in (request.calibration, request.search, request.test))
    budget = windows * request.length * CHARACTERS_PER_TOKEN
    for row in stream:
        yield row[column]
        budget -= len(row[column])
        if budget < 0:
            return


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

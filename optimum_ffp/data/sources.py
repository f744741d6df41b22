"""Text from files, folders and the Hub."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import FFPError
from .request import DataRequest


NAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": ("allenai/c4", "en"),
}
SPLITS = ("train", "validation", "test")
SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# A stream is read only as far as its windows need, at this many characters a token (English text has 4 to 5).
CHARACTERS_PER_TOKEN = 8
ALTERNATIVES = "name a local .txt, .jsonl or .parquet file, a folder with train, validation and test, or 'self'"


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
        return {split: _split_file(path, split) for split in SPLITS}
    if path.is_file():
        return {path.name: path}
    if path.suffix in SUFFIXES or dataset.startswith((".", "/", "~")):
        raise FFPError(f"there is no file or folder {dataset}; {ALTERNATIVES}")
    return {}


def hub_source(dataset: str) -> tuple[str, str | None]:
    """Repository and configuration of a dataset on the Hub."""
    name, _, config = dataset.partition(":")
    return NAMED.get(name, (name, config or None))


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
        splits = [split for split in SPLITS if split in available]
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

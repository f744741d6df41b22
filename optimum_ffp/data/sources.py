"""Text of each split, from files, folders and the Hub."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from huggingface_hub import constants

from ..errors import FFPError
from ..hub.upload import one_line
from .columns import Row, choose_column, length_of, read_column
from .files import find_splits, kind_of, read_rows
from .request import DataRequest


logger = logging.getLogger(__name__)
NAMED = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": ("allenai/c4", "en"),
}
SPLITS = ("train", "validation", "test")
# Characters per token, to limit how much of a stream is read (English text has 4 to 5).
CHARACTERS_PER_TOKEN = 8
# Minimum characters to read of files, so that windows are picked from the whole of a file of ordinary size.
CHARACTERS_OF_FILES = 2**26
# Rows that the text column is found by.
HEAD = 100
ALTERNATIVES = "name a local .txt, .jsonl or .parquet file, or a folder with train, validation and test"


def read_splits(dataset: str, request: DataRequest) -> dict[str, list[Row]]:
    """Reads the texts or conversations of each split of a dataset.

    Args:
        dataset: A name, Hub id, file or folder, as in `load_windows`.
        request: Amount of text, and its column.

    Returns:
        Rows by split; a single split if the dataset has not all three.

    Raises:
        FFPError: If the data can't be found or read, or has no text.
    """
    if files := find_files(dataset):
        return {split: _read_files(paths, request) for split, paths in files.items()}
    return _read_from_hub(dataset, request)


def find_files(dataset: str) -> dict[str, list[Path]]:
    """Finds local files of a dataset: by split, or a single file by its name; empty if the dataset is not local.

    Raises:
        FFPError: If the file or folder does not exist, or a folder lacks a split.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        return find_splits(path, SPLITS)
    if path.is_file():
        return {path.name: [path]}
    if kind_of(path, required=False) or dataset.startswith((".", "/", "~")):
        raise FFPError(f"there is no file or folder {dataset}; {ALTERNATIVES}")
    return {}


def check_text_file(path: Path, text_column: str | None = None) -> None:
    """Raises `FFPError` if a local file can't be read, or its first rows have no text."""
    with _reader_errors(path):
        _column_of(path, text_column)


def hub_source(dataset: str) -> tuple[str, str | None]:
    """Repository and configuration of a dataset on the Hub."""
    name, _, config = dataset.partition(":")
    return NAMED.get(name, (name, config or None))


def hub_error(dataset: str, error: Exception, prunes: bool) -> FFPError:
    """The error for a dataset that can't be read from the Hub.

    Args:
        dataset: As in `load_windows`.
        error: Exception of the Hub client.
        prunes: Whether to suggest `self`, which is available for pruning only.
    """
    reason = "offline mode is on" if constants.HF_HUB_OFFLINE else one_line(error)
    return FFPError(
        f"dataset {dataset!r} can't be read from the Hub ({reason}); {ALTERNATIVES}{', or self' if prunes else ''}"
    )


def _read_files(paths: list[Path], request: DataRequest) -> list[Row]:
    def texts() -> Iterator[Row]:
        for path in paths:
            with _reader_errors(path):
                column = _column_of(path, request.text_column)
                yield from read_column(read_rows(path, column), column, str(path))

    most = max(_characters(request), CHARACTERS_OF_FILES)
    rows = list(_take(texts(), most))
    if not any(row.strip() if isinstance(row, str) else row for row in rows):
        raise FFPError(f"{paths[0]} holds no text")
    if sum(map(length_of, rows)) > most:
        logger.warning("%s is long: its first %s characters are read", paths[0], f"{most:,}")
    return rows


def _column_of(path: Path, text_column: str | None) -> str:
    # A .txt has no columns: `text_column` refers to other files.
    wanted = None if path.is_file() and kind_of(path) == "text" else text_column
    return choose_column(list(islice(read_rows(path), HEAD)), wanted, str(path))


@contextmanager
def _reader_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FFPError:
        raise
    except Exception as error:  # Each reader raises its own exceptions; the user needs the file and the reason.
        raise FFPError(f"{path} can't be read: {_first_line(error)}") from None


def _read_from_hub(dataset: str, request: DataRequest) -> dict[str, list[Row]]:
    from datasets import get_dataset_split_names, load_dataset

    repository, config = hub_source(dataset)
    wanted = None if dataset in NAMED else request.text_column
    try:
        available = get_dataset_split_names(repository, config)
        splits = [split for split in SPLITS if split in available]
        if len(splits) < len(SPLITS):
            splits = ["train"] if "train" in available else available[:1]
        texts = {}
        for split in splits:
            stream = load_dataset(repository, config, split=split, streaming=True)
            column = choose_column(list(islice(stream, HEAD)), wanted, f"{dataset} ({split})")
            texts[split] = list(_take(read_column(stream, column, f"{dataset} ({split})"), _characters(request)))
        return texts
    except FFPError:
        raise
    except (
        Exception
    ) as error:  # The clients of the Hub raise dozens of types; all mean that the data is not available.
        raise hub_error(dataset, error, prunes=request.calibration > 0) from None


def _characters(request: DataRequest) -> int:
    """Upper bound of the characters of all windows."""
    windows = 4 * sum(count or 100 for count in (request.calibration, request.search, request.test))
    return windows * request.length * CHARACTERS_PER_TOKEN


def _take(rows: Iterable[Row], characters: int) -> Iterator[Row]:
    for row in rows:
        yield row
        characters -= length_of(row)
        if characters < 0:
            return


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

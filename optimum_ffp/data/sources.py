"""Text of each split, from files, folders and the Hub."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from huggingface_hub import constants

from ..config.texts import NAMED, Text
from ..errors import FFPError, convert_errors, named_line, one_line
from ..utils.folders import expand
from .columns import Row, choose_columns, length_of, read_columns
from .files import find_splits, kind_of, read_rows
from .request import DataRequest


logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
# Characters per token, to limit how much of a stream is read (English text has 4 to 5).
CHARACTERS_PER_TOKEN = 8
# Minimum characters to read of files, so that windows are picked from the whole of a file of ordinary size. Of a text
# without splits no more is read, so that its parts are the same ones for windows of any number and length.
CHARACTERS = 2**26
# Test windows of a text without a test split of its own if no number is given: a fifth of a long one would cost more
# than the prune.
TEST_WINDOWS = 100
ROLES = {"calibration": "train", "search": "validation", "test": "test"}
# Rows that the text column is found by.
HEAD = 100
ALTERNATIVES = "name a local .txt, .jsonl or .parquet file, or a folder with train, validation and test"


def read_splits(dataset: str, request: DataRequest, only: Collection[str] = SPLITS) -> dict[str, list[Row]]:
    """Reads the texts or conversations of each split of a dataset.

    Args:
        dataset: A name, Hub id, file or folder, as in `load_windows`.
        request: Amount of text, and its column.
        only: Splits to read of a dataset that has them.

    Returns:
        Rows by split: all three, one and `test`, or a single one; none of a split that isn't read.

    Raises:
        FFPError: If the data can't be found or read, or has no text.
    """
    files = find_files(dataset)
    streams = stream_splits(dataset, request.text_column, prunes=request.search > 0, token=request.token)
    found = {}
    for split, rows in streams.items():
        if split not in only and (len(streams) == len(SPLITS) or [*only] == ["test"] and "test" in streams):
            found[split] = []
            continue
        # All of a test split, and of the only split that is wanted, if no number of windows is given.
        whole = bool(files) or (request.test is None and (split == "test" or len(only) == 1))
        cut = len(streams) == 1 or (split != "test" and len(streams) == 2)
        most = CHARACTERS if cut else _characters(request, whole)
        found[split] = list(_take(rows(), most))
        if whole:
            label = files[split][0] if files else f"{dataset} ({split})"
            _check_rows(found[split], label, None if cut and request.reads_on else most)
    return found


def head_of(rows: Iterable[Row]) -> list[Row]:
    """The first rows of a text, as `read_splits` reads one that is cut into parts."""
    return list(_take(rows, CHARACTERS))


def stream_splits(
    dataset: str, text_column: str | None = None, prunes: bool = True, token: str | None = None
) -> dict[str, Callable[[], Iterator[Row]]]:
    """Finds the splits of a dataset.

    Args:
        dataset: A name, Hub id, file or folder, as in `load_windows`.
        text_column: Column to read; one of a known name if `None`.
        prunes: Whether errors may suggest `self`, which is available for pruning only.
        token: Access token of the Hub.

    Returns:
        By split, a function that reads the rows from the beginning: all three splits, one and `test`, or a single one.

    Raises:
        FFPError: If the data can't be found. Reading raises it if it can't be read, or has no text.
    """
    if files := find_files(dataset):
        return {split: partial(_rows_of_files, paths, text_column) for split, paths in files.items()}
    available = hub_splits(dataset, prunes, token)
    splits = [split for split in SPLITS if split in available]
    if len(splits) < len(SPLITS):
        first = next((split for split in (*splits, *available) if split != "test"), "test")
        splits = [first, "test"] if "test" in available and first != "test" else [first]
    return {split: partial(_rows_from_hub, dataset, split, text_column, prunes, token) for split in splits}


def hub_splits(dataset: str, prunes: bool = True, token: str | None = None) -> list[str]:
    """Names of the splits of a dataset on the Hub; arguments and errors are those of `stream_splits`."""
    from datasets import get_dataset_split_names

    with convert_errors(partial(_describe_unavailable, dataset, prunes, token)):
        return get_dataset_split_names(*Text(dataset).hub_source, token=token)


def find_files(dataset: str) -> dict[str, list[Path]]:
    """Finds local files of a dataset: by split, or a single file by its name; empty if the dataset is not local.

    Raises:
        FFPError: If the file or folder does not exist, or a folder lacks a split.
    """
    path = expand(dataset)
    if path.is_dir():
        return find_splits(path, SPLITS)
    if path.is_file():
        return {path.name: [path]}
    if kind_of(path, required=False) or dataset.startswith((".", "/", "~")):
        raise FFPError(f"there is no file or folder {dataset}; {ALTERNATIVES}")
    return {}


def is_test_split(dataset: str, split: str) -> bool:
    """Whether the only split of a dataset is one of the Hub for tests, all of which is one."""
    return split == "test" and not _files_that_exist(dataset)


def _files_that_exist(dataset: str) -> dict[str, list[Path]]:
    """As `find_files`, but empty if they are missing, which is said by what reads them."""
    try:
        return find_files(dataset)
    except FFPError:
        return {}


def check_text_file(path: Path, text_column: str | None = None) -> None:
    """Raises `FFPError` if a local file can't be read, or its first rows have no text."""
    with convert_errors(partial(_describe_unreadable, path)):
        _columns_of(path, text_column)


def check_hub_text(dataset: str, text_column: str | None = None, token: str | None = None) -> None:
    """Raises `FFPError` if a dataset of the Hub can't be read, or the first rows of its first split have no text."""
    rows, *_ = stream_splits(dataset, text_column, token=token).values()
    next(rows(), None)


def _rows_of_files(paths: list[Path], text_column: str | None) -> Iterator[Row]:
    for path in paths:
        with convert_errors(partial(_describe_unreadable, path)):
            columns = _columns_of(path, text_column)
            yield from read_columns(read_rows(path, columns), columns, str(path))


def _check_rows(rows: list[Row], label: str | Path, most: int | None) -> None:
    if not any(row.strip() if isinstance(row, str) else row for row in rows):
        raise FFPError(f"{label} holds no text")
    if most is not None and sum(map(length_of, rows)) > most:
        logger.warning("%s is long: its first %s characters are read", label, f"{most:,}")


def _columns_of(path: Path, text_column: str | None) -> tuple[str, ...]:
    # A .txt has no columns: `text_column` refers to other files.
    wanted = None if path.is_file() and kind_of(path) == "text" else text_column
    return choose_columns(list(islice(read_rows(path), HEAD)), wanted, str(path))


def _describe_unreadable(path: Path, error: Exception) -> str:
    return f"{path} can't be read: {named_line(error)}"


def _rows_from_hub(
    dataset: str, split: str, text_column: str | None, prunes: bool, token: str | None
) -> Iterator[Row]:
    from datasets import load_dataset

    repository, config = Text(dataset).hub_source
    wanted, label = None if dataset in NAMED else text_column, f"{dataset} ({split})"
    with convert_errors(partial(_describe_unavailable, dataset, prunes, token)):
        stream = load_dataset(repository, config, split=split, streaming=True, token=token)
        columns = choose_columns(list(islice(stream, HEAD)), wanted, label)
        yield from read_columns(stream, columns, label)


def _describe_unavailable(dataset: str, prunes: bool, token: str | None, error: Exception) -> str:
    reason = one_line(error, token)
    if constants.HF_HUB_OFFLINE:
        reason = "offline mode is on"
    elif reason.startswith("Config name is missing"):
        # The names are in the second line.
        reason = f"{one_line(str(error).partition(chr(10))[2], token)}, as {dataset}:NAME"
    others = f"{ALTERNATIVES}{', or self' if prunes else ''}"
    return f"dataset {dataset!r} can't be read from the Hub ({reason}); {others}"


def _characters(request: DataRequest, whole: bool) -> int:
    """Upper bound of the characters to read of a split."""
    counts = {role: getattr(request, role) for role in ROLES}
    counts["test"] = counts["test"] or TEST_WINDOWS
    # More than is needed, so that windows are not all from its beginning.
    most = 4 * sum(counts.values()) * max(map(request.length_of, ROLES)) * CHARACTERS_PER_TOKEN
    return max(most, CHARACTERS) if whole else most


def _take(rows: Iterable[Row], characters: int) -> Iterator[Row]:
    for row in rows:
        # A file may be one line.
        yield row[: characters + 1] if isinstance(row, str) else row
        characters -= length_of(row)
        if characters < 0:
            return

"""Local datasets: files of a folder by split, and rows of a file."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from ..errors import FFPError


SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# Rows of a table that are read at once.
TABLE_ROWS = 256
# Lines of a .txt by which those of WikiText-2 are told from others.
WIKITEXT_LINES = 256
# Characters of a .txt without blank lines that are one row.
BLOCK = 2**22
# Names of a split beside its own, which `datasets` knows too.
NAMES = {"validation": ("valid", "val", "dev")}
# Suffix of shards on the Hub: train-00000-of-00002, optionally with a hash.
SHARD = r"(-\d+-of-\d+(-[0-9a-f]+)?)?"


def kind_of(path: Path, required: bool = True) -> str | None:
    """Returns `"text"`, `"json"` or `"parquet"`, by the suffix of a file; `None` for other suffixes.

    Raises:
        FFPError: If `required` and the suffix is another.
    """
    suffix = _suffix(path)
    if suffix is None and required:
        raise FFPError(f"{path} is not a {', '.join(SUFFIXES)} file; convert it, or give it one of these suffixes")
    return suffix and SUFFIXES[suffix]


def find_splits(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """Finds the files of each split in a folder.

    The folder is one written by `save_to_disk`, or has a file or shards per split, in it or in its subfolder `data`.
    The output of `save_to_disk` for a split counts as one file.

    Args:
        folder: Folder of the dataset.
        splits: Names of the splits.

    Returns:
        Files by split: of all splits, of `train` and `test` or `train` alone, or of the one split that was saved.

    Raises:
        FFPError: If the folder has another layout, or splits are missing.
    """
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {folder.name: [folder]}
    saved = (folder / "dataset_dict.json").is_file()
    if saved:
        folders = {split: [folder / name for name in _names(split) if (folder / name).is_dir()] for split in splits}
        found = {split: present[:1] for split, present in folders.items() if present}
    else:
        found = {split: files for split in splits if (files := _split_files(folder, split))}
    missing = [split for split in splits if split not in found]
    if not missing or list(found) in (["train"], ["train", "test"]):
        return found
    holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    parts = [entry for entry in sorted(folder.iterdir()) if (entry / "state.json").is_file()]
    if saved and parts:
        raise FFPError(
            f"{folder} has no split {missing[0]}; it holds {holds}. Name one of its splits, such as {parts[0]}, to "
            "have it split"
        )
    raise FFPError(
        f"{folder} has no {missing[0]} file ({', '.join(missing[0] + suffix for suffix in SUFFIXES)}); it holds "
        f"{holds}. Give one file instead of the folder to have it split"
    )


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, or of a folder written by `save_to_disk`.

    A .txt is read as it is: its rows, of the column `text`, are what blank lines separate, by which rows are joined
    again. In a file like those of WikiText-2, whose lines begin with a space, a line is a row, with its line end, or
    empty, as on the Hub.

    Args:
        path: The file or folder.
        columns: The only columns to read from tables; all if `None`.

    Raises:
        FFPError: If a line of a .jsonl is not a JSON object.
    """
    if path.is_dir():
        yield from _read_saved(path, columns)
    elif kind_of(path) == "parquet":
        yield from _read_parquet(path, columns)
    else:
        # utf-8-sig skips a byte order mark.
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            yield from (_read_text if kind_of(path) == "text" else _read_json)(file, path)


def _suffix(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    packed_table = suffix == ".parquet" and name != path.name.lower()
    return suffix if suffix in SUFFIXES and not packed_table else None


def _names(split: str) -> tuple[str, ...]:
    return split, *NAMES.get(split, ())


def _split_files(folder: Path, split: str) -> list[Path]:
    for place in (folder, folder / "data"):
        files = sorted(file for file in (place.iterdir() if place.is_dir() else ()) if file.is_file())
        names = "|".join(_names(split))
        for pattern in (f"({names})", f"({names}){SHARD}", rf"({names})\..+"):
            for suffix in SUFFIXES:
                found = [
                    file for file in files if _suffix(file) == suffix and re.fullmatch(pattern, _stem(file, suffix))
                ]
                if found:
                    _check_shards(found)
                    return found
    return []


def _stem(file: Path, suffix: str) -> str:
    return file.name.lower().removesuffix(".gz").removesuffix(suffix)


def _check_shards(files: Sequence[Path]) -> None:
    """Raises `FFPError` if shards are missing."""
    total = re.search(r"-\d+-of-(\d+)", files[0].name)
    if total and len(files) != int(total[1]):
        raise FFPError(
            f"{files[0].parent} has {len(files)} of the {int(total[1])} shards that {files[0].name} is one of; "
            "download the others"
        )


def _read_text(file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
    head = [*islice(file, WIKITEXT_LINES)]
    lines = chain(head, file)
    rows = _lines if all(line.startswith(" ") for line in head if line.strip()) else _blocks
    return ({"text": text} for text in rows(lines))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            yield line.removesuffix("\n") + "\n"
        elif line.endswith("\n"):
            yield ""


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    block, length = [], 0
    for line in lines:
        ends = line == "\n" and len(block) > 0
        if not ends:
            block.append(line)
            length += len(line)
        if ends or length > BLOCK:
            yield "".join(block).removesuffix("\n")
            block, length = [], 0
    if block:
        yield "".join(block)


def _read_json(file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if number == 1 and line.lstrip().startswith("["):
            yield from _read_array(line + file.read(), path)
        elif line.strip():
            yield _parse(line, f"{path}, line {number}")


def _read_array(text: str, path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = _decode(text)
    except ValueError as error:
        raise FFPError(f"{path} is not valid JSON: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise FFPError(f"{path}, entry {number}: found {type(row).__name__} instead of a JSON object")
        yield row


def _parse(line: str, label: str) -> dict[str, Any]:
    try:
        row = _decode(line)
    except ValueError as error:
        raise FFPError(f"{label} is not valid JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(row, dict):
        raise FFPError(f"{label} is not a JSON object: found {type(row).__name__}; each line must be one row")
    return row


def _decode(text: str) -> Any:
    found = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        # A lone surrogate is valid JSON but can't be encoded.
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(TABLE_ROWS, columns=columns and [*columns]):
            yield from batch.to_pylist()


def _read_saved(folder: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    from datasets import load_from_disk

    table = load_from_disk(str(folder)).with_format(None)
    yield from table.select_columns([*columns]) if columns else table

"""Text from wherever it is, as windows of tokens."""

from .request import DataRequest, check_window_length
from .sources import ALTERNATIVES, NAMED, check_suffix, find_files, hub_source, join_rows, read_splits
from .windows import DataSplits, Windows, cut, load_windows, tokenize


__all__ = [
    "ALTERNATIVES",
    "NAMED",
    "DataRequest",
    "DataSplits",
    "Windows",
    "check_suffix",
    "check_window_length",
    "cut",
    "find_files",
    "hub_source",
    "join_rows",
    "load_windows",
    "read_splits",
    "tokenize",
]

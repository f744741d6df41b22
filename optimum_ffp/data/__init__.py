"""Text from wherever it is, as windows of tokens."""

from .columns import Row
from .request import DataRequest, check_window_length
from .sources import ALTERNATIVES, NAMED, check_text_file, find_files, hub_source, read_splits
from .windows import DataSplits, Windows, cut_rows, load_windows


__all__ = [
    "ALTERNATIVES",
    "NAMED",
    "DataRequest",
    "DataSplits",
    "Row",
    "Windows",
    "check_text_file",
    "check_window_length",
    "cut_rows",
    "find_files",
    "hub_source",
    "load_windows",
    "read_splits",
]

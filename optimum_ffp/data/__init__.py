"""Text from files, the Hub or the model itself, as windows of tokens."""

from .columns import Row
from .request import LONGEST, DataRequest, check_calibration_tokens, window_length, with_window_length
from .sources import NAMED, check_text_file, find_files, hub_error, hub_source, read_splits
from .windows import DataSplits, Windows, cut_rows, load_windows


__all__ = [
    "LONGEST",
    "NAMED",
    "DataRequest",
    "DataSplits",
    "Row",
    "Windows",
    "check_text_file",
    "check_calibration_tokens",
    "cut_rows",
    "find_files",
    "hub_error",
    "hub_source",
    "load_windows",
    "read_splits",
    "window_length",
    "with_window_length",
]

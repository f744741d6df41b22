"""Text from files, the Hub or the model itself, as windows of tokens."""

from .columns import Row
from .cutting import cut_rows, find_start_token
from .loading import load_windows
from .parts import part_for_test
from .request import (
    LONGEST,
    DataRequest,
    check_calibration_tokens,
    reported_texts,
    window_length,
    with_window_length,
)
from .sources import (
    TEST_WINDOWS,
    check_hub_text,
    check_text_file,
    find_files,
    is_test_split,
    read_splits,
)
from .training import TrainingWindows, training_windows
from .windows import DataSplits, Windows, describe_shape, describe_size, describe_windows


__all__ = [
    "LONGEST",
    "TEST_WINDOWS",
    "DataRequest",
    "DataSplits",
    "Row",
    "TrainingWindows",
    "Windows",
    "check_hub_text",
    "check_text_file",
    "check_calibration_tokens",
    "describe_shape",
    "describe_size",
    "describe_windows",
    "cut_rows",
    "find_files",
    "find_start_token",
    "is_test_split",
    "load_windows",
    "read_splits",
    "reported_texts",
    "part_for_test",
    "training_windows",
    "window_length",
    "with_window_length",
]

"""Loading of text from files, the Hub or the model itself as windows of tokens."""

from .loading import calibration_text, load_windows
from .request import DataRequest, check_calibration_tokens, window_length
from .rows import check_text
from .training import training_windows
from .windows import DataSplits, Windows, describe_size, describe_windows, with_first_tokens

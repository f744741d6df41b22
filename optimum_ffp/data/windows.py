"""Windows of tokens for calibration, search and test."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..config.texts import TextMix


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of consecutive tokens, and their source.

    Attributes:
        tokens: Token ids, shape `[windows, window length]`.
        dataset: Dataset or mix, as named by the user.
        split: Split of the dataset, or a description of the part.
        start_token: Whether every window begins with the start token.
        sha256: What `Text.sha256` returns for each local text, by its name for records.
        bytes: What `count_bytes` returns for the windows; 0 if it wasn't called.
    """

    tokens: torch.Tensor
    dataset: str
    split: str
    start_token: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def describe(self) -> dict[str, Any]:
        """Return the JSON-ready description of the windows, for records of what is measured on them."""
        record = {
            "dataset": self.dataset,
            "split": self.split,
            "windows": len(self),
            "window_length": self.length,
            "start_token": self.start_token,
        }
        record |= {"sha256": dict(self.sha256)} if self.sha256 else {}
        return record | ({"bytes": self.bytes} if self.bytes else {})

    @property
    def length(self) -> int:
        """Tokens per window."""
        return self.tokens.shape[1]

    def first(self, count: int) -> "Windows":
        """Return the first `count` windows, or all if there are fewer."""
        return replace(self, tokens=self.tokens[:count])


def count_bytes(windows: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of UTF-8 bytes of windows without their first token, which is not predicted."""

    def decoded(tokens: torch.Tensor) -> int:
        texts = tokenizer.batch_decode(tokens, clean_up_tokenization_spaces=False)
        # A window may begin and end inside a character, whose bytes are decoded to U+FFFD.
        return sum(len(text.replace("\ufffd", "?").encode()) for text in texts)

    # Not of the other tokens alone, since some tokenizers strip the space before what they decode.
    return decoded(windows) - decoded(windows[:, :1])


def with_first_tokens(windows: torch.Tensor, every: int, start_token: bool) -> list[torch.Tensor]:
    """Return windows, and unless these begin with a start token, one in `every` of their tokens as a sequence itself.

    Many models give the first token of a text, whichever it is, a massive activation (an attention sink); if it is
    lost, all following tokens are predicted badly. Windows without a start token are one example each.

    Args:
        windows: Token ids, shape `[windows, window length]`.
        every: Distance of these tokens; 0 for the windows alone.
        start_token: Whether windows begin with a start token.

    Returns:
        Token ids by length of the sequences, shape `[windows, sequences per window, length]`.
    """
    return [windows[:, None], *([windows[:, ::every, None]] if every and not start_token else [])]


def describe_size(windows: Mapping[str, Any]) -> str:
    """Format the number and length of windows, from the record of `Windows.describe`."""
    return f"{windows['windows']} windows of {windows['window_length']} tokens"


def describe_windows(windows: Mapping[str, Any]) -> str:
    """Format texts, split and shape of windows, from the record of `Windows.describe`."""
    texts = TextMix.parse(windows["dataset"]).describe(windows.get("sha256"))
    start = "with" if windows["start_token"] else "without"
    return f"{texts}, {windows['split']}, {describe_size(windows)}, {start} a start token"


@dataclass(frozen=True)
class DataSplits:
    """Windows for the four roles, all disjoint.

    Attributes:
        calibration: Windows of all texts of a mix, shuffled.
        search: Windows of other parts of these texts, shuffled.
        held_out: Windows by which training decides what it keeps, of the same parts as those for the search.
        tests: Test windows of each reported text.
    """

    calibration: Windows
    search: Windows
    held_out: Windows
    tests: tuple[Windows, ...]

    @property
    def test(self) -> Windows:
        """Test windows of the first text."""
        return self.tests[0]

    def with_bytes(self, tokenizer: PreTrainedTokenizerBase) -> "DataSplits":
        """Return the windows with the bytes of those for the test."""
        tests = (replace(test, bytes=count_bytes(test.tokens, tokenizer)) for test in self.tests)
        return replace(self, tests=tuple(tests))

    def roles(self) -> list[tuple[str, Windows]]:
        """Return all windows with their role, in order."""
        mixes = [("calibration", self.calibration), ("search", self.search), ("held_out", self.held_out)]
        return mixes + [("test", test) for test in self.tests]

    def to_list(self) -> list[dict[str, Any]]:
        """Return the JSON-ready form of all windows."""
        return [vars(windows) | {"tokens": windows.tokens.tolist()} for _, windows in self.roles()]

    @classmethod
    def from_list(cls, data: list[dict[str, Any]]) -> "DataSplits":
        """Restore the result of `to_list`."""
        # A recovery has neither calibration nor search windows.
        none = torch.empty(0, 0, dtype=torch.long)
        tokens = [torch.tensor(record["tokens"]) if record["tokens"] else none for record in data]
        windows = [replace(Windows(**record), tokens=rows) for record, rows in zip(data, tokens)]
        return cls(*windows[:3], tests=tuple(windows[3:]))

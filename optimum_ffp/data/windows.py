"""Windows of tokens, and those of a prune: for calibration, search and test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .request import DataRequest


# Length of a run of tokens that two windows share only if one repeats the other.
RUN = 64
# Windows to train on that are compared at once.
AT_ONCE = 4096


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of consecutive tokens, and their source.

    Attributes:
        tokens: Token ids, shape `[windows, window length]`; `-1 - id` for tokens without a loss.
        dataset: Dataset or mix, as named by the user.
        split: Split of the dataset, or a description of the part.
        start_token: Whether every window begins with the start token.
        written: Number of them that the model has generated.
    """

    tokens: torch.Tensor
    dataset: str
    split: str
    start_token: bool = False
    written: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def describe(self) -> dict[str, str | int]:
        """Record for figures that are measured on these windows: what they are, their number and length."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "windows": len(self),
            "window_length": self.length,
            "start_token": self.start_token,
        }

    @property
    def length(self) -> int:
        """Tokens per window."""
        return self.tokens.shape[1]

    def repeating(self, *others: "Windows") -> int:
        """Number of windows that have at least half of their text in common with others, at any offset."""
        rows = [row for windows in others for row in windows._text()]
        if not rows:
            return 0
        run = min(RUN, self.length - 1, *(len(row) for row in rows))
        seen = torch.cat([_hashes(row[None], run, 1)[0] for row in rows])
        return int((torch.isin(_hashes(self._text(), run, run), seen).float().mean(1) >= 0.5).sum())

    def repeated_in(self, tokens: torch.Tensor) -> int:
        """Number of windows that have at least half of their text in common with windows to train on.

        Args:
            tokens: Many windows, shape `[windows, window length]`, as in `TrainingWindows`.
        """
        text, tokens = self._text(), tokens[:, int(self.start_token) :]
        # Short enough that a copy has several, wherever those that are hashed of windows to train on begin.
        run = max(1, min(RUN, text.shape[1] // 8, tokens.shape[1] // 4))
        parts = (_hashes(without_mask(part).long(), run, run) for part in tokens.split(AT_ONCE))
        seen = torch.cat([part.flatten() for part in parts]).unique()
        found = torch.stack([torch.isin(_hashes(row[None], run, 1)[0], seen) for row in text])
        # A token is repeated if any of the runs that it is in was found.
        covered = nn.functional.pad(found, (run - 1, run - 1)).unfold(1, run, 1).any(2)
        return int((covered.float().mean(1) >= 0.5).sum())

    def first(self, count: int) -> "Windows":
        """The first `count` windows, or all if there are fewer."""
        return replace(self, tokens=self.tokens[:count], written=min(self.written, count))

    def _text(self) -> torch.Tensor:
        # Text has the start token wherever a window begins, so that a repetition elsewhere would not be found.
        return without_mask(self.tokens[:, int(self.start_token) :])


def without_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Token ids of windows, of which those without a loss are `-1 - id`."""
    return torch.where(tokens < 0, -1 - tokens, tokens)


def _hashes(rows: torch.Tensor, run: int, step: int) -> torch.Tensor:
    """Random linear hashes of every `step`-th run of tokens, shape `[rows, runs]`; collisions are unlikely."""
    factors = torch.randint(2**62, (run,), generator=torch.Generator().manual_seed(0))
    return rows.unfold(1, run, step) @ factors


def describe_size(windows: Mapping[str, Any], wanted: int | None = None) -> str:
    """Number and length of the windows of a record of `Windows.describe`.

    Args:
        windows: The record.
        wanted: Number of windows that was asked for, which is named if there was less text.
    """
    count = windows["windows"]
    count = f"only {count} of {wanted}" if wanted and count < wanted else count
    return f"{count} windows of {windows['window_length']} tokens"


def describe_shape(windows: Mapping[str, Any], wanted: int | None = None) -> str:
    """Number and length of windows, and whether they begin with a start token; arguments as for `describe_size`."""
    # Records of earlier versions don't say it.
    start = "a" if windows.get("start_token") else "no"
    return f"{describe_size(windows, wanted)}, {start} start token"


def describe_windows(windows: Mapping[str, Any], wanted: int | None = None) -> str:
    """Dataset, split and shape of windows; arguments as for `describe_size`."""
    return f"{windows['dataset']}, {windows['split']}, {describe_shape(windows, wanted)}"


@dataclass(frozen=True)
class DataSplits:
    """Windows for the three roles.

    Attributes:
        calibration: Windows of all texts of a mix, shuffled.
        search: The same of other text.
        tests: Test windows of each text that is reported on.
    """

    calibration: Windows
    search: Windows
    tests: tuple[Windows, ...]

    @property
    def test(self) -> Windows:
        """Test windows of the first text."""
        return self.tests[0]

    @property
    def written_tokens(self) -> int:
        """Number of tokens that the model has generated."""
        return sum(windows.written * windows.length for _, windows in self.roles())

    @property
    def test_tokens(self) -> int:
        """Number of tokens of the test windows of all texts."""
        return sum(test.tokens.numel() for test in self.tests)

    @cached_property
    def repeated(self) -> dict[str, int]:
        """Number of search and test windows that repeat text of the roles before them; empty if there are none."""
        counts = {
            "search": self.search.repeating(self.calibration),
            "test": sum(test.repeating(self.calibration, self.search) for test in self.tests),
        }
        return {role: count for role, count in counts.items() if count}

    def warnings(self, request: DataRequest) -> list[str]:
        """One line per role that has fewer windows than requested, or repeats text of another role."""
        found = []
        # A recovery calibrates nothing, and has the windows of a search held out.
        names = {} if request.calibration else {"search": "held-out"}
        earlier = "calibration or search" if request.calibration else "held-out windows"
        for role, windows in self.roles():
            wanted, name = getattr(request, role), names.get(role, role)
            if wanted and len(windows) < wanted:
                found.append(
                    f"little text: {windows.dataset} ({windows.split}) gives {len(windows)} of the {wanted} {name} "
                    f"windows of {windows.length} tokens that are requested; give more text (of one without "
                    f"splits the first 67 million characters are used), or a smaller {request.length_option(role)}"
                )
        sizes = {"search": len(self.search), "test": sum(map(len, self.tests))}
        for role, count in self.repeated.items():
            found.append(
                f"{count} of {sizes[role]} {names.get(role, role)} windows repeat text of {earlier}, so that "
                "perplexity is too optimistic; give other text for them"
            )
        return found

    def roles(self) -> list[tuple[str, Windows]]:
        """All windows with their role, in order."""
        return [("calibration", self.calibration), ("search", self.search), *(("test", test) for test in self.tests)]

    def to_list(self) -> list[dict[str, Any]]:
        """The JSON-ready form of all windows."""
        return [vars(windows) | {"tokens": windows.tokens.tolist()} for _, windows in self.roles()]

    @classmethod
    def from_list(cls, data: list[dict[str, Any]]) -> "DataSplits":
        """Restores the result of `to_list`."""
        # A recovery has no calibration windows.
        none = torch.empty(0, 0, dtype=torch.long)
        tokens = [torch.tensor(one["tokens"]) if one["tokens"] else none for one in data]
        calibration, search, *tests = (Windows(**one | {"tokens": rows}) for one, rows in zip(data, tokens))
        return cls(calibration, search, tuple(tests))

"""Windows of one text by role: of splits of their own, or of parts of one split."""

from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from .cutting import cut_tokens, cut_windows, encode_text, find_start_token
from .parts import MARGIN, part_for_search, part_for_test
from .request import DataRequest
from .sources import ROLES, TEST_WINDOWS, is_test_split, read_splits
from .windows import Windows


def load_roles(
    dataset: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest, tested: bool
) -> dict[str, Windows]:
    """Load the windows of one text: the first ones for the test, random ones for the other roles.

    Args:
        dataset: A text, as in `load_windows`.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        request: Number and length of windows.
        tested: Whether there are test windows.

    Returns:
        Windows by role; none of roles that are not asked for, or of the test if it isn't `tested`.

    Raises:
        FFPError: If the text can't be read, or is too short.
    """
    roles = [role for role in ROLES if getattr(request, role) != 0 and (role != "test" or tested)]
    text = _Text(dataset, tokenizer, model, request, roles)
    found = {role: text.windows(role) for role in roles}
    if "test" in text.sharing and len(text.rows) == 1:
        request = replace(request, test=request.test or TEST_WINDOWS)
    generator = torch.Generator().manual_seed(request.seed)
    result, none = {}, (torch.empty(0, request.length, dtype=torch.long), "")
    for role in ROLES:
        windows, source = found.get(role, none)
        if role != "test":
            windows = windows[torch.randperm(len(windows), generator=generator)]
        result[role] = Windows(windows[: getattr(request, role)], dataset, source, text.start is not None)
    return result


class _Text:
    """One text, whose splits are tokenised once.

    Args:
        dataset: The text.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        request: Length of windows.
        roles: The roles that need windows.

    Attributes:
        rows: Rows of the text by split.
        start: The start token of all windows, if they have one.
    """

    def __init__(
        self,
        dataset: str,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        request: DataRequest,
        roles: list[str],
    ):
        self.dataset, self.tokenizer, self.model, self.request = dataset, tokenizer, model, request
        self.start = find_start_token(tokenizer, request.start_token)
        self.rows = read_splits(dataset, request, {ROLES[role] for role in roles})
        # With one split and test, or a single text, the first one serves the roles that have no split of their own.
        with_split = {1: (), 2: ("test",), 3: (*ROLES,)}[len(self.rows)]
        self.first = next(iter(self.rows))
        if roles == ["test"] and is_test_split(dataset, self.first):
            with_split = ("test",)
        self.sharing = [role for role in roles if role not in with_split]
        self._encoded: dict[tuple[str, bool], list[np.ndarray]] = {}

    def windows(self, role: str) -> tuple[torch.Tensor, str]:
        """Return all windows that a role may have, shape `[windows, window length]`, and where they are from.

        Raises:
            FFPError: If there are none.
        """
        shares = role in self.sharing
        split = self.first if shares else ROLES[role]
        length, option = self.request.length_of(role), self.request.length_option(role)
        windows = cut_windows(self._tokens(role), length, f"{self.dataset} ({split})", self.start, option)
        if not shares:
            return windows, split
        part = self._part(role, len(windows))
        if not part:
            raise FFPError(self._shortage(role))
        return windows[part.start : part.stop], f"{role} part of {split}"

    def _part(self, role: str, count: int) -> range:
        """Return which of `count` windows of a split that roles share are of one of them."""
        if role == "test":
            return part_for_test(count)
        searched = part_for_search(count, min(count, self._before_test(role)) if len(self.rows) == 1 else count)
        return searched if role == "search" else range(searched.start)

    def _before_test(self, role: str) -> int:
        """Return how many windows of a role end before the first test window, which may have another length."""
        # Test windows are cut from the whole text, those of the role maybe from its rows tokenised alone.
        text, tokens = self._encode(self.first, False), self._tokens(role)
        length, added = self.request.length_of("test"), int(self.start is not None)
        tests = part_for_test(self._count(text, length), "test" in self.sharing)
        total, count = (sum(map(len, rows)) for rows in (text, tokens))
        begin = tests.start * (length - added) if tests else total
        margin = int(MARGIN * count) if count != total else 0
        return max(0, begin * count // total - margin) // (self.request.length - added)

    def _shortage(self, role: str) -> str:
        longest = max(self.sharing, key=self.request.length_of)
        length, option = self.request.length_of(longest), self.request.length_option(longest)
        return (
            f"{self.dataset} with {option} {length} gives {self._count(self._tokens(role), length)} window(s); "
            f"{' and '.join(self.sharing)} need one each: use more text or a smaller {option}"
        )

    def _count(self, tokens: list[np.ndarray], length: int) -> int:
        return len([*cut_tokens(tokens, length, self.start)])

    def _tokens(self, role: str) -> list[np.ndarray]:
        split = self.first if role in self.sharing else ROLES[role]
        return self._encode(split, self.request.answers_only and role == "search")

    def _encode(self, split: str, answers_only: bool) -> list[np.ndarray]:
        key = split, answers_only
        if key not in self._encoded:
            label = f"{self.dataset} ({split})"
            rows = self.rows[split]
            self._encoded[key] = encode_text(rows, self.tokenizer, self.model, label, self.start, answers_only)
        return self._encoded[key]

"""Windows of tokens for calibration, search and test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from .cutting import cut_rows, find_start_token
from .request import DataRequest
from .self_generated import sample_from_model
from .sources import read_splits


ROLES = {"calibration": "train", "search": "validation", "test": "test"}
# Length of a run of tokens that two windows share only if one repeats the other.
RUN = 64
# Shares of the windows if a single text serves all three roles, in this order.
SHARES = {"calibration": 0.6, "search": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of consecutive tokens, and their source.

    Attributes:
        tokens: Token ids, shape `[windows, window length]`.
        dataset: Dataset, as named by the user.
        split: Split of the dataset, or a description of the part.
        start_token: Whether every window begins with the start token.
    """

    tokens: torch.Tensor
    dataset: str
    split: str
    start_token: bool = False

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
        run = min(RUN, self.length - 1)
        # A random linear hash of runs of tokens; collisions are unlikely.
        factors = torch.randint(2**62, (run,), generator=torch.Generator().manual_seed(0))
        seen = torch.cat([row.unfold(0, run, 1) @ factors for windows in others for row in windows._text()])
        runs = self._text().unfold(1, run, run) @ factors
        return int((torch.isin(runs, seen).float().mean(1) >= 0.5).sum())

    def first(self, count: int) -> "Windows":
        """The first `count` windows, or all if there are fewer."""
        return replace(self, tokens=self.tokens[:count])

    def _text(self) -> torch.Tensor:
        # Text has the start token wherever a window begins, so that a repetition elsewhere would not be found.
        return self.tokens[:, int(self.start_token) :]


def begin_of(windows: Mapping[str, Any]) -> str:
    """Says how the windows of a record of `Windows.describe` begin; those of earlier versions have no start token."""
    return f"{'a' if windows.get('start_token') else 'no'} start token"


@dataclass(frozen=True)
class DataSplits:
    """Windows for the three roles."""

    calibration: Windows
    search: Windows
    test: Windows

    @cached_property
    def repeated(self) -> dict[str, int]:
        """Number of search and test windows that repeat text of the roles before them; empty if there are none."""
        counts = {
            "search": self.search.repeating(self.calibration),
            "test": self.test.repeating(self.calibration, self.search),
        }
        return {role: count for role, count in counts.items() if count}

    def warnings(self, request: DataRequest) -> list[str]:
        """One line per role that has fewer windows than requested, or repeats text of another role."""
        found = []
        for role, windows in self._roles().items():
            wanted = getattr(request, role)
            if wanted and len(windows) < wanted:
                found.append(
                    f"little text: {windows.dataset} ({windows.split}) gives {len(windows)} of the {wanted} {role} "
                    f"windows of {windows.length} tokens that are requested; give more text, or a smaller seq_len"
                )
        for role, count in self.repeated.items():
            found.append(
                f"{count} of {len(getattr(self, role))} {role} windows repeat text of calibration or search, so that "
                "perplexity is too optimistic; give other text for them"
            )
        return found

    def _roles(self) -> dict[str, Windows]:
        return {role: getattr(self, role) for role in ROLES}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The JSON-ready form of all windows."""
        return {role: vars(windows) | {"tokens": windows.tokens.tolist()} for role, windows in self._roles().items()}

    @classmethod
    def from_dict(cls, data: dict[str, dict[str, Any]]) -> "DataSplits":
        """Restores the result of `to_dict`."""
        return cls(**{role: Windows(**one | {"tokens": torch.tensor(one["tokens"])}) for role, one in data.items()})


def load_windows(
    dataset: str,
    eval_dataset: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: DataRequest,
) -> DataSplits:
    """Loads windows for all roles.

    Calibration windows are from train, search windows from validation and test windows from test. A single file, or a
    dataset with one split, is cut into disjoint parts. `self` samples the text from the model. With other datasets the
    model generates `request.self_share` of the windows for calibration and search, fewer if there is less text.

    Args:
        dataset: `wikitext2`, `c4`, a Hub id (`id` or `id:config`), a file, a folder, or `self`.
        eval_dataset: Dataset of the test windows; `dataset` if `None`.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        request: Number and length of windows.

    Raises:
        FFPError: If the data can't be found or read, is too short, or the model can't generate text.
    """
    counts, roles = request.written(dataset, eval_dataset), {}
    if dataset != "self":
        shares = {role: count for role, count in counts.items() if role != "test"}
        text = replace(request, **{role: getattr(request, role) - count for role, count in shares.items()})
        roles = _load_roles(dataset, tokenizer, model, text)
        # If text is short, scale the number of generated windows to keep the ratio.
        kept = {role: count * len(roles[role]) / getattr(text, role) for role, count in shares.items() if count}
        counts |= {role: round(count) for role, count in kept.items()}
    if "test" in counts:
        roles.pop("test", None)
    elif eval_dataset and eval_dataset != dataset:
        roles["test"] = _load_roles(eval_dataset, tokenizer, model, request)["test"]
    counts = {role: count for role, count in counts.items() if count}
    if counts:
        written = sample_from_model(model, tokenizer, sum(counts.values()), request.length, request.seed)
        parts = dict(zip(counts, written.split(list(counts.values()))))
        labels = {role: f"{role} part of text sampled from the model" for role in parts}
        own = _pick({role: part for role, part in parts.items() if role not in roles}, "self", labels, request, True)
        mixed = {role: _mix(roles[role], parts[role], request.seed) for role in roles.keys() & parts.keys()}
        roles |= own | mixed
    return DataSplits(**roles)


def _mix(text: Windows, written: torch.Tensor, seed: int) -> Windows:
    order = torch.randperm(len(text) + len(written), generator=torch.Generator().manual_seed(seed))
    split = f"{text.split} and {len(written)} sampled from the model"
    return replace(text, tokens=torch.cat([text.tokens, written])[order], split=split)


def _load_roles(
    dataset: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest
) -> dict[str, Windows]:
    start = find_start_token(tokenizer, request.start_token)
    splits = {
        split: cut_rows(rows, tokenizer, model, request.length, f"{dataset} ({split})", start)
        for split, rows in read_splits(dataset, request).items()
    }
    if len(splits) > 1:
        parts = {role: splits[split] for role, split in ROLES.items()}
        return _pick(parts, dataset, ROLES, request, start is not None)
    (split, windows), *_ = splits.items()
    shares = _share_out(len(windows), f"{dataset} with seq_len {request.length}")
    parts = dict(zip(shares, windows.split(list(shares.values()))))
    return _pick(parts, dataset, {role: f"{role} part of {split}" for role in ROLES}, request, start is not None)


def _pick(
    parts: dict[str, torch.Tensor], dataset: str, labels: dict[str, str], request: DataRequest, start_token: bool
) -> dict[str, Windows]:
    """The requested number of windows: the first ones for the test, random ones for the other roles."""
    generator = torch.Generator().manual_seed(request.seed)
    result = {}
    for role, windows in parts.items():
        if role != "test":
            windows = windows[torch.randperm(len(windows), generator=generator)]
        result[role] = Windows(windows[: getattr(request, role)], dataset, labels[role], start_token)
    return result


def _share_out(count: int, label: str) -> dict[str, int]:
    if count < len(SHARES):
        raise FFPError(
            f"{label} gives {count} window(s); calibration, search and test need one each: use more text or a "
            "smaller seq_len"
        )
    shares = {role: max(1, round(share * count)) for role, share in SHARES.items()}
    return shares | {"calibration": count - shares["search"] - shares["test"]}

"""Loads the windows of all roles, from one text or a mix of several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from ..utils.seeds import seed_of
from .cutting import cut_tokens, cut_windows, encode_text, find_start_token
from .parts import MARGIN, part_for_search, part_for_test
from .request import DataRequest, reported_texts
from .self_generated import has_start_token, sample_from_model
from .sources import ROLES, TEST_WINDOWS, read_splits
from .windows import DataSplits, Windows


# Apart from the text to train on, which is of seed 1.
ROLES_SEED = 2


def load_windows(
    dataset: str,
    eval_dataset: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: DataRequest,
) -> DataSplits:
    """Loads windows for all roles.

    Calibration windows are from train, search windows from validation and test windows from test. A single file, or a
    dataset with one split, is cut into disjoint parts. Without validation, calibration and search windows are from the
    same parts of train. `self` samples the text from the model. Windows for calibration and search have the shares of
    a mix, and `request.self_share` of `self`; if one of its texts is short, there are fewer windows of all.

    Args:
        dataset: `wikitext2`, `c4`, a Hub id (`id` or `id:config`), a file, a folder, or `self`; or a mix of them, as
            in `read_mix`.
        eval_dataset: Texts to report on, each by itself; those of `dataset` that the model doesn't write if `None`.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        request: Number and length of windows.

    Raises:
        FFPError: If the data can't be found or read, is too short, or the model can't generate text.
    """
    wanted, reported = request.counts(dataset), reported_texts(dataset, eval_dataset)
    found: dict[str, dict[str, Windows]] = {}
    for name in dict.fromkeys([*wanted["calibration"], *reported]):
        if name != "self":
            counts = {role: of_texts.get(name, 0) for role, of_texts in wanted.items()}
            found[name] = _load_roles(name, tokenizer, model, replace(request, **counts), name in reported)
    kept = {
        role: _scaled(counts, {name: len(found[name][role]) for name in counts if name in found})
        for role, counts in wanted.items()
    }
    written = request.written(dataset, eval_dataset) | {role: texts.get("self", 0) for role, texts in kept.items()}
    if any(written.values()):
        found["self"] = _sample_roles(written, tokenizer, model, request)
    mixed = {
        role: _mix([found[name][role].first(count) for name, count in counts.items()], dataset, request.seed)
        for role, counts in kept.items()
    }
    return DataSplits(**mixed, tests=tuple(found[name]["test"] for name in reported))


def _sample_roles(
    counts: Mapping[str, int], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest
) -> dict[str, Windows]:
    """Return the windows that the model writes, by role."""
    found = {}
    for number, length in enumerate(dict.fromkeys(map(request.length_of, counts))):
        roles = {role: count for role, count in counts.items() if request.length_of(role) == length}
        # Text of another length must not begin with the same.
        seed = seed_of(request.seed, ROLES_SEED) if number else request.seed
        tokens = sample_from_model(model, tokenizer, sum(roles.values()), length, seed)
        begins = has_start_token(tokens, tokenizer)
        for role, part in zip(roles, tokens.split(list(roles.values()))):
            found[role] = Windows(part, "self", "text sampled from the model", begins, len(part))
    return found


def _scaled(wanted: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """Fewer windows of every text where one is short, so that their ratio remains."""
    scale = min((count / wanted[name] for name, count in available.items() if wanted[name]), default=1.0)
    return {name: max(min(1, count), round(scale * count)) for name, count in wanted.items()}


def _mix(parts: Sequence[Windows], dataset: str, seed: int) -> Windows:
    if len(parts) == 1:
        return parts[0]
    tokens = torch.cat([part.tokens for part in parts])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    split = ", ".join(f"{len(part)} of {part.split}" for part in parts)
    begins, written = all(part.start_token for part in parts), sum(part.written for part in parts)
    return Windows(tokens[order], dataset, split, begins, written)


def _load_roles(
    dataset: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest, tested: bool
) -> dict[str, Windows]:
    """The windows of one text by role; none of roles that are not asked for, or of the test if it isn't `tested`."""
    start = find_start_token(tokenizer, request.start_token)
    roles = [role for role in ROLES if getattr(request, role) != 0 and (role != "test" or tested)]
    rows = read_splits(dataset, request, {ROLES[role] for role in roles})

    # With one split and test, or a single text, the first one serves the roles that have no split of their own.
    with_split, first = {1: (), 2: ("test",), 3: (*ROLES,)}[len(rows)], next(iter(rows))

    @cache
    def encode(split: str, answers_only: bool) -> list[np.ndarray]:
        return encode_text(rows[split], tokenizer, model, f"{dataset} ({split})", start, answers_only)

    parts, labels = {}, {}
    for role in roles:
        split = ROLES[role] if role in with_split else first
        length, option = request.length_of(role), request.length_option(role)
        tokens = encode(split, request.answers_only and role == "search")
        windows, labels[role] = cut_windows(tokens, length, f"{dataset} ({split})", start, option), split
        if role not in with_split:
            part = part_for_test(len(windows))
            if role != "test":
                whole = None if with_split else encode(first, False)
                before = _before_test(whole, tokens, request, start, "test" in roles) if whole else len(windows)
                part = part_for_search(len(windows), min(before, len(windows)))
            if role == "calibration":
                part = range(part.start)
            if not part:
                needed = [one for one in roles if one not in with_split]
                longest = max(needed, key=request.length_of)
                length, option = request.length_of(longest), request.length_option(longest)
                raise FFPError(
                    f"{dataset} with {option} {length} gives {len([*cut_tokens(tokens, length, start)])} window(s); "
                    f"{' and '.join(needed)} need one each: use more text or a smaller {option}"
                )
            windows, labels[role] = windows[part.start : part.stop], f"{role} part of {split}"
        parts[role] = windows
    if len(rows) == 1:
        request = replace(request, test=request.test or TEST_WINDOWS)
    return _pick(parts, dataset, labels, request, start is not None)


def _before_test(
    text: Sequence[np.ndarray],
    tokens: Sequence[np.ndarray],
    request: DataRequest,
    start: int | None,
    reported: bool,
) -> int:
    """How many windows end before the first test window of a text.

    Args:
        text: Tokens that the test windows are cut from.
        tokens: Tokens that the other windows are cut from, `text` itself or its rows tokenised alone.
        request: Lengths of both.
        start: Start token of all windows.
        reported: Whether there must be a test window.
    """
    length, added = request.length_of("test"), int(start is not None)
    tests = part_for_test(len([*cut_tokens(text, length, start)]), reported)
    total, count = (sum(map(len, rows)) for rows in (text, tokens))
    begin = tests.start * (length - added) if tests else total
    margin = int(MARGIN * count) if count != total else 0
    return max(0, begin * count // total - margin) // (request.length - added)


def _pick(
    parts: dict[str, torch.Tensor], dataset: str, labels: dict[str, str], request: DataRequest, start_token: bool
) -> dict[str, Windows]:
    """The requested number of windows: the first ones for the test, random ones for the other roles."""
    generator = torch.Generator().manual_seed(request.seed)
    result = {}
    none = torch.empty(0, request.length, dtype=torch.long)
    for role in ROLES:
        windows = parts.get(role, none)
        if role != "test":
            windows = windows[torch.randperm(len(windows), generator=generator)]
        result[role] = Windows(windows[: getattr(request, role)], dataset, labels.get(role, ""), start_token)
    return result

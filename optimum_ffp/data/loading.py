"""Loads the windows of all roles, from one text or a mix of several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from .cutting import cut_rows, find_start_token
from .request import DataRequest, reported_texts
from .self_generated import has_start_token, sample_from_model
from .sources import SHARES, TEST_WINDOWS, read_splits
from .windows import DataSplits, Windows


ROLES = {"calibration": "train", "search": "validation", "test": "test"}


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
            found[name] = _load_roles(name, tokenizer, model, replace(request, **counts))
    kept = {
        role: _scaled(counts, {name: len(found[name][role]) for name in counts if name in found})
        for role, counts in wanted.items()
    }
    written = request.written(dataset, eval_dataset) | {role: texts.get("self", 0) for role, texts in kept.items()}
    if any(written.values()):
        tokens = sample_from_model(model, tokenizer, sum(written.values()), request.length, request.seed)
        parts = zip(written, tokens.split(list(written.values())))
        begins = has_start_token(tokens, tokenizer)
        found["self"] = {role: Windows(part, "self", "text sampled from the model", begins) for role, part in parts}
    mixed = {
        role: _mix([found[name][role].first(count) for name, count in counts.items()], dataset, request.seed)
        for role, counts in kept.items()
    }
    return DataSplits(**mixed, tests=tuple(found[name]["test"] for name in reported))


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
    return Windows(tokens[order], dataset, split, all(part.start_token for part in parts))


def _load_roles(
    dataset: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest
) -> dict[str, Windows]:
    start = find_start_token(tokenizer, request.start_token)
    splits = {
        split: cut_rows(rows, tokenizer, model, request.length, f"{dataset} ({split})", start)
        for split, rows in read_splits(dataset, request).items()
    }
    if len(splits) == len(ROLES):
        parts = {role: splits[split] for role, split in ROLES.items()}
        return _pick(parts, dataset, ROLES, request, start is not None)
    (split, windows), *_ = splits.items()
    shares = share_out(len(windows), f"{dataset} with seq_len {request.length}")
    parts = dict(zip(shares, windows.split(list(shares.values()))))
    labels = {role: f"{role} part of {split}" for role in ROLES}
    if len(splits) > 1:
        parts["test"], labels["test"] = splits["test"], "test"
    else:
        request = replace(request, test=request.test or TEST_WINDOWS)
    return _pick(parts, dataset, labels, request, start is not None)


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


def share_out(count: int, label: str) -> dict[str, int]:
    """Returns how many of the windows of a text without splits each role gets, in order.

    Raises:
        FFPError: If there is not one for each.
    """
    if count < len(SHARES):
        raise FFPError(
            f"{label} gives {count} window(s); calibration, search and test need one each: use more text or a "
            "smaller seq_len"
        )
    shares = {role: max(1, round(share * count)) for role, share in SHARES.items()}
    return shares | {"calibration": count - shares["search"] - shares["test"]}

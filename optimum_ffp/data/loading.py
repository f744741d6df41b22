"""Loads the windows of all roles, from one text or a mix of several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.seeds import seed_of
from .request import DataRequest, reported_texts
from .roles import load_roles
from .self_generated import has_start_token, sample_from_model
from .sources import ROLES
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
    a mix; if one of its texts is short, there are fewer windows of all.

    Args:
        dataset: `wikitext2`, `c4`, a Hub id (`id` or `id:config`), a file, a folder, or `self`; or a mix of them, as
            in `TextMix.parse`.
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
            found[name] = load_roles(name, tokenizer, model, replace(request, **counts), name in reported)
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
    for number, role in enumerate(ROLES):
        count, length = counts.get(role, 0), request.length_of(role)
        # A recovery must not be judged by what the prune was calibrated on, and reads fewer windows.
        seed, tokens = seed_of(request.seed, ROLES_SEED, number), torch.empty(0, length, dtype=torch.long)
        if count:
            tokens = sample_from_model(model, tokenizer, count, length, seed)
        begins = has_start_token(tokens, tokenizer)
        found[role] = Windows(tokens, "self", "text sampled from the model", begins, count)
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

"""Loads the windows of all roles, from one text or a mix of several."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import SPLITS, Text, TextMix
from ..errors import FFPError
from ..utils.seeds import seed_of
from .cutting import cut_blocks, cut_windows, find_start_token
from .request import DataRequest
from .rows import read_pieces
from .self_generated import sample_from_model
from .windows import DataSplits, Windows


ROLES = ("calibration", "search", "test")
# Where the parts for calibration, search and test end of a text without splits; beside a test split there are two.
ENDS = {1: (0.6, 0.8, 1), 2: (0.8, 1)}
WORD_END = re.compile(r"\s|\Z")
# Characters of a text that windows of calibration and search are chosen from, and that parts are divided by: a number
# of its own, so that the parts are the same ones for windows of any number and length.
CHARACTERS = 2**25
# Characters per window that are encoded at once (English text has 4 to 5 per token), and characters at most.
CHARACTERS_PER_TOKEN, MOST_CHARACTERS = 8, 2**22
# Test windows of a text without a test split of its own if no number is given: a fifth of a long one would cost more
# than the prune.
TEST_WINDOWS = 100
# Apart from the text to train on, which is of seed 1.
ROLES_SEED = 2


@dataclass(frozen=True)
class Part:
    """The part of a text that is for one role, in pieces, and its description."""

    pieces: Iterable[str]
    source: str


def load_windows(
    texts: TextMix,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: DataRequest,
    reported: TextMix | None = None,
) -> DataSplits:
    """Load windows for all roles.

    Calibration windows are from train, search windows from validation and test windows from test. A text with one
    split is cut into three parts in this order, and train beside test alone into two. Windows for calibration and
    search have the shares of a mix.

    Args:
        texts: Texts for calibration and search.
        tokenizer: Tokenizer of the model.
        model: The dense model, which writes the text of `self`.
        request: Number and length of windows.
        reported: Texts to report on, each by itself; those of `texts` that the model doesn't write if `None`.

    Raises:
        FFPError: If the data can't be found or read, is too short, or the model can't generate text.
    """
    reported = reported or texts.reported
    counts: dict[str, dict[str, int | None]] = {
        "calibration": texts.divide(request.calibration),
        "search": texts.divide(request.search),
        "test": dict.fromkeys(reported.names, request.test),
    }
    found = {}
    for name in dict.fromkeys([*texts.names, *reported.names]):
        wanted = {role: of_texts[name] for role, of_texts in counts.items() if of_texts.get(name, 0) != 0}
        if wanted:
            found[name] = _load_text(Text(name), tokenizer, model, request, wanted)
    mixed = [
        _mix([windows[role] for windows in found.values() if role in windows], str(texts), request)
        for role in ("calibration", "search")
    ]
    return DataSplits(*mixed, tests=tuple(found[name]["test"] for name in reported.names))


def read_parts(
    text: Text, tokenizer: PreTrainedTokenizerBase, request: DataRequest
) -> tuple[dict[str, Part], Iterator[str]]:
    """Open a text, and divide it among the roles.

    Returns:
        Parts by role, and the pieces of the first split beyond those that are divided, to train on.

    Raises:
        FFPError: If the text can't be opened. Reading raises it if it can't be read, or has no text.
    """
    streams = text.open(request.token)
    pieces = {
        split: read_pieces(rows, text, tokenizer, request.text_column, request.token)
        for split, rows in streams.items()
    }
    if len(streams) == len(SPLITS):
        return {role: Part(pieces[split], split) for role, split in zip(ROLES, SPLITS)}, iter(())
    first = next(iter(streams))
    parts = {"test": Part(pieces["test"], "test")} if len(streams) == 2 else {}
    characters = _take(pieces[first], text)
    begin = 0
    for role, share in zip(ROLES, ENDS[len(streams)]):
        end = WORD_END.search(characters, round(share * len(characters))).start()
        parts[role] = Part([characters[begin:end]], f"{role} part of {first}")
        begin = end
    return parts, pieces[first]


def _load_text(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    request: DataRequest,
    wanted: dict[str, int | None],
) -> dict[str, Windows]:
    """Load the windows of one text by role: the first ones for the test, random ones for the other roles."""
    start = find_start_token(tokenizer, request.start_token)
    if text.is_self:
        return {role: _sample(model, tokenizer, request, role, count) for role, count in wanted.items()}
    parts, _ = read_parts(text, tokenizer, request)
    generator = torch.Generator().manual_seed(request.seed)
    found = {}
    for role, count in wanted.items():
        part, label, spread = parts[role], f"{text.name} ({parts[role].source})", False
        if role == "test":
            count = count or (None if part.source == "test" else TEST_WINDOWS)
            size = request.length * CHARACTERS_PER_TOKEN * count if count else MOST_CHARACTERS
            blocks = cut_blocks(part.pieces, min(size, MOST_CHARACTERS))
        else:
            blocks = [*cut_blocks([_take(part.pieces, text)], request.length * CHARACTERS_PER_TOKEN)]
            blocks = [blocks[index] for index in torch.randperm(len(blocks), generator=generator)]
            # A block may have less than a window, and the next one then adds to it.
            spread = len(blocks) >= 2 * count
        windows = cut_windows(blocks, tokenizer, model, request.length, label, start, one_per_block=spread)
        windows = [*islice(windows, count)]
        if not windows:
            raise FFPError(
                f"{label} has less than one window of {request.length} tokens; give more text, or lower seq_len"
            )
        found[role] = Windows(torch.stack(windows), text.name, part.source, start is not None)
    return found


def _sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: DataRequest, role: str, count: int | None
) -> Windows:
    # A recovery must not be judged by what the prune was calibrated on, and reads fewer windows.
    seed = seed_of(request.seed, ROLES_SEED, ROLES.index(role))
    tokens = sample_from_model(model, tokenizer, count or request.search or 1, request.length, seed)
    start = find_start_token(tokenizer, request.start_token)
    begins = start is not None and bool((tokens[:, 0] == start).all())
    return Windows(tokens, "self", "sampled", begins)


def _take(pieces: Iterable[str], text: Text) -> str:
    """The first `CHARACTERS` of a text."""
    found, left = [], CHARACTERS
    for piece in pieces:
        found.append(piece[:left])
        left -= len(piece)
        if left <= 0:
            break
    characters = "".join(found)
    if not characters.strip():
        raise FFPError(f"{text.name} holds no text")
    return characters


def _mix(parts: Sequence[Windows], dataset: str, request: DataRequest) -> Windows:
    if not parts:
        return Windows(torch.empty(0, request.length, dtype=torch.long), dataset, "")
    tokens = torch.cat([part.tokens for part in parts])
    # Of one text too, whose windows that follow each other are often of one block.
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(request.seed))
    split = parts[0].split if len(parts) == 1 else ", ".join(f"{len(part)} of {part.split}" for part in parts)
    return Windows(tokens[order], dataset, split, all(part.start_token for part in parts))

"""Loading of the windows for all roles, from a text or a mix of texts."""

import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import SPLITS, Rows, Text
from ..errors import FFPError
from ..utils.progress import progress_bar
from ..utils.seeds import seed_of
from .answers import answered_pieces, answers_file
from .cutting import cut_blocks, cut_windows, find_start_token
from .request import DataRequest
from .rows import read_pieces, read_prompts
from .self_generated import sample_from_model
from .windows import DataSplits, Windows


logger = logging.getLogger(__name__)
ROLES = ("calibration", "search", "test")
# Ends of the parts for calibration, search and test in a split, by the number of splits that a text has.
PART_ENDS = {1: (0.6, 0.8, 1), 2: (0.8, 1)}
WORD_END = re.compile(r"\s|\Z")
# Maximum characters of a text that is divided into parts, and that calibration and search windows are chosen from. It
# is independent of the number and length of windows, so that the parts are too.
MAX_TEXT_CHARACTERS = 2**25
# Size of the blocks to encode, in characters per token of a window (English has 4 to 5), and its maximum.
CHARACTERS_PER_TOKEN, MAX_BLOCK_CHARACTERS = 8, 2**22
# Maximum characters of a text whose tokens are counted to choose a vocabulary.
MAX_COUNTED_CHARACTERS = 2**23
# Default number of test windows without a test split: a fifth of a long text would cost more than the prune.
TEST_WINDOWS = 100
# Seed for sampled text; training text uses 1.
ROLES_SEED = 2


def load_windows(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest) -> DataSplits:
    """Load windows for all roles, and warn of those that have fewer than requested.

    Calibration windows are from the train split, search and held-out windows from validation and test windows from
    test. The only split of a text is divided into three parts in this order; without validation, train is divided into
    two. All but the test windows have the shares of the mix.

    Args:
        tokenizer: Tokenizer of the model.
        model: The dense model, which generates the text of `self`.
        request: Texts, and number and length of windows.

    Raises:
        FFPError: If the data can't be found or read, is too short, or the model can't generate text.
    """
    reader, texts, reported = TextReader(tokenizer, model, request), request.texts, request.reported
    held_out = texts.divide(request.held_out)
    # Cut together with the held-out windows, which are then taken off, so that they are disjoint.
    search = {name: count + held_out[name] for name, count in texts.divide(request.search).items()}
    calibration, tests = texts.divide(request.calibration), dict.fromkeys(reported.names, request.test)
    loaded: dict[str, dict[str, Windows]] = {}
    for name, text in {text.name: text for text in (*texts, *reported)}.items():
        counts = {role: by_text.get(name, 0) for role, by_text in zip(ROLES, (calibration, search, tests))}
        counts = {role: count for role, count in counts.items() if count != 0}
        loaded[name] = reader.load(text, counts) if counts else {}
        if search.get(name):
            loaded[name] |= _hold_out(loaded[name]["search"], search[name], held_out[name])
    mixes = [
        _mix([windows[role] for windows in loaded.values() if role in windows], str(texts), request)
        for role in ("calibration", "search", "held_out")
    ]
    data = DataSplits(*mixes, tests=tuple(loaded[name]["test"] for name in reported.names)).with_bytes(tokenizer)
    for role, windows in data.roles():
        if (requested := getattr(request, role)) and len(windows) < requested:
            logger.warning(
                f"{windows.dataset} ({windows.split}) fills only {len(windows)} of {requested} windows of "
                f"{windows.length} tokens; use more text, or a smaller seq_len"
            )
    return data


class TextReader:
    """Reads windows of one text at a time. Arguments are as for `load_windows`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest):
        self.tokenizer, self.model, self.request = tokenizer, model, request
        self.start = find_start_token(tokenizer, request.start_token)

    def load(self, text: Text, counts: dict[str, int | None]) -> dict[str, Windows]:
        """Load windows of a text by role: the first ones for the test, random ones for other roles."""
        if text.is_self:
            return {role: self._sample(role, count or self.request.generated_tests) for role, count in counts.items()}
        parts, _ = self.divide(text, counts)
        sha256 = {text.published: text.sha256()} if text.is_local else {}
        generator, windows = torch.Generator().manual_seed(self.request.seed), {}
        total = None if None in counts.values() else sum(count or 0 for count in counts.values())
        with progress_bar(total, f"Reading {text.name}", "window") as bar:
            for role, count in counts.items():
                (pieces, source), one_per_block = parts[role], False
                if text.is_answers:
                    count = count or self.request.generated_tests
                    blocks = self.blocks(pieces, 1)
                elif role == "test" or count is None:
                    count = count or (None if source == "test" else TEST_WINDOWS)
                    blocks = self.blocks(pieces, count)
                else:
                    blocks = [*cut_blocks([_take(pieces, text)], self.request.length * CHARACTERS_PER_TOKEN)]
                    blocks = [blocks[index] for index in torch.randperm(len(blocks), generator=generator)]
                    # A block may be shorter than a window, which then continues in the next block.
                    one_per_block = len(blocks) >= 2 * count
                tokens = self.cut(blocks, count, f"{text.name} ({source})", bar, one_per_block)
                windows[role] = Windows(tokens, text.name, source, self.start is not None, sha256)
        return windows

    def divide(
        self, text: Text, roles: Collection[str] = ROLES
    ) -> tuple[dict[str, tuple[Iterable[str], str]], Iterator[str]]:
        """Open a text, and divide it into parts by role, of which at least those of the given roles are returned.

        Returns:
            The pieces of each part and its description, and the remaining pieces of the first split, for training.

        Raises:
            FFPError: If the text can't be opened. Iteration raises it if the text can't be read or is empty.
        """
        opened = text.open(self.request.token)
        if text.is_answers:
            return self._divide_prompts(text, opened), iter(())
        pieces = {
            split: read_pieces(rows, text, self.tokenizer, self.request.text_column, self.request.token)
            for split, rows in opened.items()
        }
        if len(pieces) == len(SPLITS):
            return {role: (pieces[split], split) for role, split in zip(ROLES, SPLITS)}, iter(())
        first = next(iter(pieces))
        parts: dict[str, tuple[Iterable[str], str]] = {"test": (pieces["test"], "test")} if len(pieces) == 2 else {}
        if parts.keys() >= {*roles}:
            return parts, iter(())
        characters, begin = _take(pieces[first], text), 0
        for role, share in zip(ROLES, PART_ENDS[len(pieces)]):
            end = next(WORD_END.finditer(characters, round(share * len(characters)))).start()
            parts[role] = [characters[begin:end]], f"{role} part of {first}"
            begin = end
        return parts, pieces[first]

    def _divide_prompts(self, text: Text, opened: Mapping[str, Rows]) -> dict[str, tuple[Iterable[str], str]]:
        """Return answers to prompts by role: of three splits, or of the first, three, one and one of every five."""
        file = answers_file(text, self.model, self.request.seed)
        logger.info("Answers to the prompts of %s are saved in %s", text.source, file)

        def answers(rows: Rows, numbers: Collection[int]) -> Iterator[str]:
            prompts = read_prompts(rows, text, self.request.text_column, self.request.token)
            chosen = (prompt for number, prompt in enumerate(prompts) if number % 5 in numbers)
            return answered_pieces(chosen, text, self.model, self.tokenizer, self.request.seed)

        if len(opened) == len(SPLITS):
            return {role: (answers(opened[split], range(5)), split) for role, split in zip(ROLES, SPLITS)}
        split = next(iter(opened))
        numbers = zip(ROLES, (range(3), (3,), (4,)))
        return {role: (answers(opened[split], chosen), f"{role} part of {split}") for role, chosen in numbers}

    def blocks(self, pieces: Iterable[str], windows: int | None) -> Iterator[str]:
        """Split text into blocks that are no larger than this many windows, or all of the text, need."""
        characters = self.request.length * CHARACTERS_PER_TOKEN * windows if windows else MAX_BLOCK_CHARACTERS
        return cut_blocks(pieces, min(characters, MAX_BLOCK_CHARACTERS))

    def cut(
        self,
        blocks: Iterable[str],
        count: int | None,
        label: str,
        bar: tqdm,
        one_per_block: bool = False,
        dtype: torch.dtype = torch.long,
    ) -> torch.Tensor:
        """Return the first `count` windows of blocks of text, or all; see `cut_windows`."""
        length, taken = self.request.length, []
        windows = cut_windows(blocks, self.tokenizer, self.model, length, label, self.start, one_per_block)
        for window in islice(windows, count):
            taken.append(window.to(dtype))
            bar.update()
        if not taken:
            raise FFPError(f"{label} has less than one window of {length} tokens; use more text, or lower seq_len")
        return torch.stack(taken)

    def _sample(self, role: str, count: int) -> Windows:
        # Separate seeds: a recovery, which reads fewer windows, must not be tested on calibration text of the prune.
        seed = seed_of(self.request.seed, ROLES_SEED, ROLES.index(role))
        tokens = sample_from_model(self.model, self.tokenizer, count, self.request.length, seed)
        has_start_token = self.start is not None and bool((tokens[:, 0] == self.start).all())
        return Windows(tokens, "self", "sampled", has_start_token)


def calibration_text(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest
) -> Iterator[str]:
    """Yield the calibration part of all texts but generated ones, as `load_windows` divides them, in long pieces."""
    reader = TextReader(tokenizer, model, request)
    for text in request.texts:
        if not text.is_generated:
            pieces, _ = reader.divide(text, ROLES[:1])[0][ROLES[0]]
            yield from cut_blocks([_take(pieces, text)[:MAX_COUNTED_CHARACTERS]], MAX_BLOCK_CHARACTERS)


def _hold_out(windows: Windows, requested: int, held_out: int) -> dict[str, Windows]:
    """Divide windows into those for the search and held-out ones; in proportion if there are fewer than requested."""
    search = len(windows) - math.ceil(len(windows) * held_out / requested)
    if not search and requested > held_out:
        raise FFPError(
            f"{windows.dataset} ({windows.split}) has one window of {windows.length} tokens, but needs one to search "
            "on and one to hold out; use more text, or lower seq_len"
        )
    return {"search": windows.first(search), "held_out": replace(windows, tokens=windows.tokens[search:])}


def _take(pieces: Iterable[str], text: Text) -> str:
    """Return the first `MAX_TEXT_CHARACTERS` of a text."""
    taken, remaining = [], MAX_TEXT_CHARACTERS
    for piece in pieces:
        taken.append(piece[:remaining])
        remaining -= len(piece)
        if remaining <= 0:
            break
    characters = "".join(taken)
    if not characters.strip():
        raise FFPError(f"{text.name} holds no text, or none in one of its parts; use more text")
    return characters


def _mix(parts: Sequence[Windows], dataset: str, request: DataRequest) -> Windows:
    if not parts:
        return Windows(torch.empty(0, request.length, dtype=torch.long), dataset, "")
    tokens = torch.cat([part.tokens for part in parts])
    # Shuffle a single text too, since consecutive windows are often from the same block.
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(request.seed))
    split = parts[0].split if len(parts) == 1 else ", ".join(f"{len(part)} of {part.split}" for part in parts)
    sha256 = {name: digest for part in parts for name, digest in part.sha256.items()}
    return Windows(tokens[order], dataset, split, all(part.start_token for part in parts), sha256)

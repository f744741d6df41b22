"""Windows to train on: rows are packed one after another, and tokens may have no loss."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import TextMix
from ..errors import FFPError
from ..utils.seeds import seed_of
from .columns import Row
from .cutting import check_known, cut_tokens, find_start_token
from .encoding import check_answers, encode_rows
from .parts import MARGIN, part_for_search, part_for_test
from .request import DataRequest
from .self_generated import sample_from_model
from .sources import head_of, stream_splits
from .windows import without_mask


# Tokens of other text that documents begin with which a model without a chat template writes.
PREFIX = 16


@dataclass(frozen=True)
class TrainingWindows:
    """Windows in the order in which they are trained on.

    Attributes:
        tokens: Token ids, int32, shape `[windows, window length]`; `-1 - id` for tokens without a loss.
        passes: How often each text is read, by name: above 1 where it is shorter than its share of the windows, and 1
            where it suffices.
    """

    tokens: torch.Tensor
    passes: dict[str, float]


def training_windows(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    count: int,
    request: DataRequest,
) -> TrainingWindows:
    """Reads as much text as is needed, and cuts it into windows.

    Of a dataset with all three splits it is train. Of others it is the part that `load_windows` has neither search nor
    test windows from, and after what that reads, all of it. Text that ends before it suffices is read again.

    Args:
        dataset: One text, or a mix of several with their shares, as for `load_windows`.
        tokenizer: Tokenizer of the model.
        model: The dense model, which writes text for `self`: conversations if the tokenizer has a chat template,
            otherwise continuations of the first tokens of the other texts, or documents where there are none.
        count: Number of windows.
        request: The request for `load_windows`.

    Raises:
        FFPError: If a text can't be read or is shorter than a window, or the chat template writes no answer of any
            conversation as it is, so that the assistant's tokens can't be told.
    """
    passes, begin = {}, 0
    start = find_start_token(tokenizer, request.start_token)
    counts = {text.name: number for text, number in TextMix.parse(dataset).divide(count).items()}
    written = counts.pop("self", 0)
    windows = torch.empty(count, request.length, dtype=torch.int32)
    # Windows are put where they belong at once, since many may not fit into memory twice.
    places = torch.randperm(count, generator=torch.Generator().manual_seed(request.seed)).argsort()
    for name, number in counts.items():
        answers: Counter[str] = Counter()
        counted = answers if request.answers_only else None
        encode = partial(encode_rows, tokenizer=tokenizer, label=name, answers=counted)
        # As `load_windows` reads it, so that the same part of it is left out.
        of_roles = {role: of_texts.get(name, 0) for role, of_texts in request.counts(dataset).items()}
        tokens = _training_tokens(name, encode, replace(request, **of_roles), start is not None)
        rows = places[begin : begin + number]
        passes[name], highest = _fill(windows, rows.tolist(), tokens, start, name)
        check_known(np.array([highest]), tokenizer, model, name)
        check_answers(answers, name)
        begin += number
    if written:
        prefixes = _prefixes(windows, places[:begin], start) if begin else None
        # Other text than the held-out and test windows that `load_windows` samples.
        seed = seed_of(request.seed, 1)
        windows[places[begin:]] = sample_from_model(model, tokenizer, written, request.length, seed, prefixes).int()
    return TrainingWindows(windows, passes)


def _prefixes(windows: torch.Tensor, rows: torch.Tensor, start: int | None) -> torch.Tensor:
    """The first tokens of windows, after the start token."""
    return without_mask(windows[:, int(start is not None) :][:, :PREFIX][rows])


def _training_tokens(
    dataset: str, encode: Callable[[Iterable[Row]], Iterator[np.ndarray]], request: DataRequest, starts: bool
) -> Callable[[], Iterator[np.ndarray]]:
    """Returns a function that yields the tokens to train on from the beginning."""
    streams = stream_splits(dataset, request.text_column, token=request.token)
    if len(streams) > 2:
        return lambda: encode(streams["train"]())
    rows, *_ = streams.values()
    head = head_of(rows())

    def tokens() -> Iterator[np.ndarray]:
        found = list(encode(head))
        count, tested = sum(map(len, found)), request.length_of("test") if len(streams) == 1 else None
        # A start token takes the place of one of the text, unless the text has it.
        left = min(_trained(count, request.length - begun, tested and tested - begun) for begun in {0, starts})
        for row in found:
            yield row[:left]
            left = max(0, left - len(row))
        unread, rest = rows(), ""
        for read, row in zip(head, unread):
            # Of a long row the beginning alone was read.
            rest = row[len(read) :] if isinstance(row, str) else ""
        yield from encode(chain([rest] if rest else [], unread))

    return tokens


def _trained(tokens: int, length: int, tested: int | None) -> int:
    """Returns how many first tokens of a text are in no held-out window, and in no test window if those are of it.

    Args:
        tokens: Number of tokens of the text.
        length: Tokens of text per held-out window.
        tested: Tokens of text per test window; `None` if those are of another split.
    """
    untested = tested * part_for_test(tokens // tested).start if tested else tokens
    held_out = part_for_search(tokens // length, untested // length)
    return max(0, int(min(held_out.start * length, untested) - MARGIN * tokens))


def _fill(
    windows: torch.Tensor,
    rows: Sequence[int],
    tokens: Callable[[], Iterator[np.ndarray]],
    start: int | None,
    label: str,
) -> tuple[float, int]:
    """Fills rows of the windows, and returns the number of passes over the text and the highest token."""
    filled, in_one_pass, highest = 0, None, 0
    while filled < len(rows):
        before = filled
        for window in cut_tokens(tokens(), windows.shape[1], start):
            windows[rows[filled]] = torch.from_numpy(window)
            highest = max(highest, int(window.max()), -1 - int(window.min()))
            filled += 1
            if filled == len(rows):
                break
        if filled == before:
            raise FFPError(f"{label} has less than one window of {windows.shape[1]} tokens to train on; lower seq_len")
        in_one_pass = in_one_pass or filled
    return len(rows) / (in_one_pass or 1), highest

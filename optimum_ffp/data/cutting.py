"""Cuts text into windows of tokens, each with the start token that the tokenizer adds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from .columns import Row, join_rows
from .encoding import check_answers, encode_rows


def find_start_token(tokenizer: PreTrainedTokenizerBase, option: str = "auto") -> int | None:
    """Id of the token that windows begin with; `None` if they are text alone.

    Many tokenizers have a start token and don't add it, since the model was trained without: what they do decides.

    Args:
        tokenizer: Tokenizer of the model.
        option: Option `start_token`: `"auto"` or `"never"`.
    """
    if option == "never":
        return None
    first, plain = (tokenizer("x", add_special_tokens=special).input_ids[:1] for special in (True, False))
    return first[0] if first != plain else None


def cut_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    length: int,
    label: str,
    start: int | None = None,
    option: str = "seq_len",
) -> torch.Tensor:
    """Tokenizes rows as one text, and cuts it into windows: `cut_windows` of `encode_text`."""
    return cut_windows(encode_text(rows, tokenizer, model, label, start), length, label, start, option)


def encode_text(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    label: str,
    start: int | None = None,
    answers_only: bool = False,
) -> list[np.ndarray]:
    """Tokenizes rows as one text, without special tokens.

    Args:
        rows: Texts or conversations.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        label: Name of the text in errors.
        start: Start token that windows will begin with.
        answers_only: Whether of conversations and prompts the assistant's messages and the completions alone have a
            loss, as in training windows.

    Returns:
        Token ids, `-1 - id` for tokens without a loss: of the whole text, or row by row with `answers_only`.

    Raises:
        FFPError: If conversations can't be rendered, or the model has no embedding for a token.
    """
    if answers_only:
        answers: Counter[str] = Counter()
        found = [*encode_rows(rows, tokenizer, label, answers)]
        check_answers(answers, label)
    else:
        text = join_rows(rows, tokenizer, label)
        # verbose=False: no warning about texts longer than the model's context, which are cut into windows.
        found = [np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int64)]
    tokens = np.concatenate([*found, np.array([] if start is None else [start], np.int64)])
    check_known(np.where(tokens < 0, -1 - tokens, tokens), tokenizer, model, label)
    return found


def cut_windows(
    tokens: Sequence[np.ndarray], length: int, label: str, start: int | None = None, option: str = "seq_len"
) -> torch.Tensor:
    """Cuts tokens into windows, and drops a remainder that is shorter than one.

    Args:
        tokens: Result of `encode_text`.
        length: Tokens per window.
        label: Name of the text in errors.
        start: Start token (`find_start_token`), the first of the `length` tokens of every window. It is not added
            where the text has it, as chat templates often write it.
        option: Name of the option that sets the length, for errors.

    Returns:
        Token ids, shape `[windows, length]`, `-1 - id` for tokens without a loss.

    Raises:
        FFPError: If the text is shorter than a window.
    """
    windows = [*cut_tokens(tokens, length, start)]
    if not windows:
        count = sum(map(len, tokens))
        raise FFPError(f"{label} has {count} tokens, less than one window of {length}; lower {option}")
    return torch.from_numpy(np.stack(windows)).long()


def check_known(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, label: str) -> None:
    """Raises `FFPError` if the model has no embedding for one of the token ids, of which it names the first."""
    unknown = tokens[tokens >= model.get_input_embeddings().weight.shape[0]].tolist()
    if unknown:
        raise FFPError(
            f"{label} has the token {tokenizer.decode(unknown[:1])!r}, for which the model has no embedding; remove "
            "it from the text"
        )


def cut_tokens(rows: Iterable[np.ndarray], length: int, start: int | None = None) -> Iterator[np.ndarray]:
    """Yields windows of the tokens of rows, one after another.

    Args:
        rows: Token ids of every row; `-1 - id` for those without a loss.
        length: Tokens per window.
        start: Start token, the first of the `length` tokens of every window that doesn't have it there anyway.

    Yields:
        Token ids, shape `[length]`; what is left at the end, shorter than a window, is dropped.
    """
    rest = np.empty(0, np.int32)
    for row in rows:
        rest = np.concatenate([rest, row])
        while len(rest):
            added = [] if start in (None, rest[0], -1 - rest[0]) else [start]
            taken = length - len(added)
            if len(rest) < taken:
                break
            yield np.concatenate([np.array(added, np.int32), rest[:taken]])
            rest = rest[taken:]

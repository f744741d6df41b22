"""Tokenization of text into windows, each with the start token that the tokenizer adds."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from ..utils.lm_head import embedding_of


def find_start_token(tokenizer: PreTrainedTokenizerBase, option: str = "auto") -> int | None:
    """Return the id of the start token of windows; `None` if they have none, as by the option `"never"`.

    Many tokenizers have a start token but don't add it, since the model was trained without; windows do the same.
    """
    if option == "never":
        return None
    first, without_special = (tokenizer("x", add_special_tokens=special).input_ids[:1] for special in (True, False))
    return first[0] if first != without_special else None


def cut_blocks(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """Join pieces of text, and split them into blocks of this many characters, up to the end of a word."""
    block = re.compile(rf"(?s).{{1,{characters}}}\S*")
    buffer, length = [], 0
    for piece in pieces:
        buffer.append(piece)
        length += len(piece)
        if length >= characters:
            yield from block.findall("".join(buffer))
            buffer, length = [], 0
    yield from block.findall("".join(buffer))


def cut_windows(
    blocks: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    length: int,
    label: str,
    start: int | None = None,
    one_per_block: bool = False,
) -> Iterator[torch.Tensor]:
    """Encode blocks of text lazily, and yield each window as soon as it is complete.

    Args:
        blocks: The text, which is only read as far as windows are consumed.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        length: Tokens per window.
        label: Name of the text in errors.
        start: Start token (`find_start_token`), the first of the `length` tokens of every window. It is not added
            where the text already has it, as from chat templates.
        one_per_block: Whether to drop the rest of a block after its first window, so that windows come from as many
            blocks as possible.

    Yields:
        Token ids, int64, shape `[length]`. An incomplete window at the end is dropped.

    Raises:
        FFPError: If the model has no embedding for a token, or the tokenizer returns none for the whole text.
    """
    pending, characters, count = np.empty(0, np.int64), 0, 0
    for block in blocks:
        # verbose=False: no warning about texts longer than the model's context, which are split anyway.
        tokens = np.array(tokenizer(block, add_special_tokens=False, verbose=False).input_ids, np.int64)
        check_known(tokens, tokenizer, model, label)
        pending, characters, count = np.concatenate([pending, tokens]), characters + len(block), count + len(tokens)
        while len(pending):
            prefix = [] if start in (None, pending[0]) else [start]
            needed = length - len(prefix)
            if len(pending) < needed:
                break
            yield torch.tensor([*prefix, *pending[:needed]])
            pending = pending[:0] if one_per_block else pending[needed:]
    if characters and not count:
        raise FFPError(f"the tokenizer returns no tokens for {label}; check that it loads as the model's own")


def check_known(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, label: str) -> None:
    """Raise `FFPError` naming the first token id that the model has no embedding for, if any."""
    unknown = tokens[tokens >= embedding_of(model).weight.shape[0]].tolist()
    if unknown:
        raise FFPError(
            f"{label} contains the token {tokenizer.decode(unknown[:1])!r}, for which the model has no embedding; "
            "remove it from the text"
        )

"""Cuts text into windows of tokens, each with the start token that the tokenizer adds."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError


def find_start_token(tokenizer: PreTrainedTokenizerBase, option: str = "auto") -> int | None:
    """Return the id of the token that windows begin with; `None` if they are text alone.

    Many tokenizers have a start token and don't add it, since the model was trained without: what they do decides.

    Args:
        tokenizer: Tokenizer of the model.
        option: Option `start_token`: `"auto"` or `"never"`.
    """
    if option == "never":
        return None
    first, plain = (tokenizer("x", add_special_tokens=special).input_ids[:1] for special in (True, False))
    return first[0] if first != plain else None


def cut_blocks(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """Join pieces of text, and cut them into blocks of this many characters and the rest of the word."""
    block = re.compile(rf"(?s).{{1,{characters}}}\S*")
    held, length = [], 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= characters:
            yield from block.findall("".join(held))
            held, length = [], 0
    yield from block.findall("".join(held))


def cut_windows(
    blocks: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    length: int,
    label: str,
    start: int | None = None,
    one_per_block: bool = False,
) -> Iterator[torch.Tensor]:
    """Encode blocks of text one after another, and yield each window as soon as there are tokens for it.

    Args:
        blocks: The text. No more of it is read than is needed for the windows that are taken.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        length: Tokens per window.
        label: Name of the text in errors.
        start: Start token (`find_start_token`), the first of the `length` tokens of every window. It is not added
            where the text has it, as chat templates often write it.
        one_per_block: Whether what follows the first window of a block is dropped, for windows of as many places as
            there are.

    Yields:
        Token ids, int64, shape `[length]`; what is left at the end, shorter than a window, is dropped.

    Raises:
        FFPError: If the model has no embedding for a token.
    """
    rest = np.empty(0, np.int64)
    for block in blocks:
        # verbose=False: no warning about texts longer than the model's context, which are cut into windows.
        tokens = np.array(tokenizer(block, add_special_tokens=False, verbose=False).input_ids, np.int64)
        check_known(tokens, tokenizer, model, label)
        rest = np.concatenate([rest, tokens])
        while len(rest):
            added = [] if start in (None, rest[0]) else [start]
            taken = length - len(added)
            if len(rest) < taken:
                break
            yield torch.tensor([*added, *rest[:taken]])
            rest = rest[:0] if one_per_block else rest[taken:]


def check_known(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, label: str) -> None:
    """Raise `FFPError` if the model has no embedding for one of the token ids, of which it names the first."""
    unknown = tokens[tokens >= model.get_input_embeddings().weight.shape[0]].tolist()
    if unknown:
        raise FFPError(
            f"{label} has the token {tokenizer.decode(unknown[:1])!r}, for which the model has no embedding; remove "
            "it from the text"
        )

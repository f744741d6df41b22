"""Cuts text into windows of tokens, each with the start token that the tokenizer adds."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from .columns import Row, join_rows


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
) -> torch.Tensor:
    """Tokenizes rows as one text, without special tokens, and cuts it into windows.

    Args:
        rows: Texts or conversations.
        tokenizer: Tokenizer of the model.
        model: The dense model.
        length: Tokens per window.
        label: Name of the text in errors.
        start: Start token (`find_start_token`), the first of the `length` tokens of every window. It is not added
            where the text has it, as chat templates often write it.

    Returns:
        Token ids, shape `[windows, length]`; a remainder shorter than a window is dropped.

    Raises:
        FFPError: If the text is shorter than a window, conversations can't be rendered, or the model has no embedding
            for a token of the text.
    """
    text = join_rows(rows, tokenizer, label)
    # verbose=False: no warning about texts longer than the model's context, which are cut into windows.
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    windows, position = [], 0
    while position < len(tokens):
        added = [] if start in (None, tokens[position]) else [start]
        end = position + length - len(added)
        windows.append(added + tokens[position:end])
        position = end
    if windows and len(windows[-1]) < length:
        windows.pop()
    if not windows:
        raise FFPError(f"{label} has {len(tokens)} tokens, less than one window of {length}; lower seq_len")
    known = model.get_input_embeddings().weight.shape[0]
    unknown = [token for token in (*tokens, *windows[0][:1]) if token >= known]
    if unknown:
        raise FFPError(
            f"{label} has the token {tokenizer.decode(unknown[:1])!r}, for which the model has no embedding; remove "
            "it from the text"
        )
    return torch.tensor(windows)

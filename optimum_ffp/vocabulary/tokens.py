"""Choice of the tokens that a trimmed vocabulary keeps."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.rows import apply_template
from ..errors import FFPError
from ..export.tokenizer import BYTE_TOKENS
from ..modeling.limits import VOCABULARY_MULTIPLE
from .tokenizer import read_backend


# Names of added tokens that no text has, such as `<unused42>` and `<|reserved_special_token_7|>`.
RESERVED = re.compile(r"unused\d|reserved_special|^\[PAD\d")
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> torch.Tensor:
    """Count the tokens of texts, without those that the tokenizer adds.

    Returns:
        The count of every token by id, [tokens].
    """
    counts = torch.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=torch.long)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        counts += torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=len(counts))
    return counts


def choose_tokens(tokenizer: PreTrainedTokenizerBase, expected: torch.Tensor, size: int) -> torch.Tensor:
    """Choose the tokens to keep: what no text can do without, then those that are expected most often.

    The bytes, added tokens that aren't reserved, and tokens of the chat template always stay. A token stays together
    with the tokens that its merges make on the way.

    Args:
        tokenizer: The dense model's tokenizer.
        expected: How often each token is expected, by id, relative to the others, [tokens or rows of the embedding].
        size: The most tokens to keep.

    Returns:
        The ids kept, ascending: as many as the largest multiple of 64 up to `size`, or all if there are no more than
        `size`.
    """
    backend, ids = read_backend(tokenizer), tokenizer.get_vocab()
    if len(ids) <= size:
        return torch.tensor(sorted(ids.values()))
    tokens = {index: token for token, index in ids.items()}
    made_with = _merge_closure(backend["model"], ids)
    limit = size // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE
    kept = {part for index in _required(tokenizer, backend, ids) for part in made_with(tokens[index])}
    if len(kept) > limit:
        raise FFPError(
            f"--vocabulary {size} is too small: the bytes, added tokens and chat template need {len(kept)} tokens; "
            f"allow at least {-(-len(kept) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE} (vocabulary)"
        )
    by_id = expected.tolist()
    for index in sorted(tokens.keys() - kept, key=lambda index: (-by_id[index], index)):
        added = made_with(tokens[index]) - kept
        if len(kept) + len(added) <= limit:
            kept |= added
        if len(kept) == limit:
            break
    return torch.tensor(sorted(kept))


def _required(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    """Tokens that always stay."""
    falls_back = backend["model"].get("byte_fallback")
    added = (token["id"] for token in backend["added_tokens"] if not RESERVED.search(token["content"]))
    required = {*tokenizer.all_special_ids, *added}
    for token, index in ids.items():
        # With byte fallback, any character but the space's replacement can be written in bytes.
        if token in BYTE_TOKENS or len(token) == 1 and (not falls_back or token.isascii() or token == "▁"):
            required.add(index)
    # Many templates write a system message of their own if there is none, and some reject one.
    for conversation in (CONVERSATION, CONVERSATION[1:]):
        with suppress(Exception):  # Templates are programs and may raise any exception.
            text = apply_template(tokenizer, conversation, add_generation_prompt=True)
            required.update(tokenizer(text, add_special_tokens=False).input_ids)
    return required


def _merge_closure(model: Mapping[str, Any], ids: Mapping[str, int]) -> Callable[[str], set[int]]:
    """A function that returns the ids of a token and of all tokens that its merges make on the way."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(model.get("merges", ()))}

    def made_with(token: str) -> set[int]:
        if not ranks:
            return {ids[token]}
        parts, made = list(token), {token, *token}
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            made.add(parts[place])
        return {ids[part] for part in made if part in ids}

    return made_with

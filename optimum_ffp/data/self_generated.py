"""Text sampled from the model itself."""

import math
import sys

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from ..utils.batch_size import with_halving_batches
from ..utils.generation import generate
from ..utils.lm_head import embedding_of
from ..utils.progress import progress_bar
from .cutting import find_start_token
from .rows import apply_template


# Maximum tokens per passage. A window consists of independently sampled passages: small models become incoherent in
# longer ones, and many short passages can be sampled as a batch.
PASSAGE = 512
# Maximum tokens in the KV cache.
TOKENS_AT_ONCE = 16 * 1024


def sample_from_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int
) -> torch.Tensor:
    """Sample text from the model at temperature 1, after the start token, or as a user turn of the chat template.

    Return token ids, shape `[count, length]`; each window has one or more passages (see `PASSAGE`). Raises `FFPError`
    as `find_opening`.
    """
    passages = math.ceil(length / PASSAGE)
    tokens = math.ceil(length / passages)
    opening = find_opening(model, tokenizer, tokens)
    prompts = torch.tensor([opening] * (count * passages), device=model.device)
    # Overrides the model's config, which may end passages early or set another temperature.
    sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=tokens - len(opening), pad_token_id=opening[0])
    original_config, model.generation_config = model.generation_config, sampling

    def sample_passages(batch_size: int) -> torch.Tensor:
        torch.manual_seed(seed)
        batches, sampled = prompts.split(batch_size), []
        with progress_bar(len(batches), "Sampling text", "batch") as bar:
            for batch in batches:
                sampled.append(generate(model, batch).cpu())
                bar.update()
        return torch.cat(sampled)

    try:
        sampled = with_halving_batches(sample_passages, max(1, TOKENS_AT_ONCE // tokens))
    finally:
        model.generation_config = original_config
    return sampled.reshape(count, -1)[:, :length]


def lacks_chats(tokens: torch.Tensor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the model has a chat template, but a text has none of the tokens that it begins a chat with.

    A start token doesn't count, which begins other texts too. A template without special tokens can't be recognized.
    """
    if not tokenizer.chat_template:
        return False
    opening = {*find_opening(model, tokenizer, sys.maxsize)} & {*tokenizer.added_tokens_decoder}
    markers = opening - {find_start_token(tokenizer)}
    return bool(markers) and markers.isdisjoint(tokens.unique().tolist())


def find_opening(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """Return the tokens to sample after: the chat template up to the user's first words, or the start token.

    They take up to half of the `length` of the text. Raises `FFPError` if the tokenizer has neither a start nor an end
    token, or the model has no embedding for it.
    """
    vocabulary = embedding_of(model).weight.shape[0]
    if tokenizer.chat_template:
        try:
            opening, _ = apply_template(tokenizer, [{"role": "user", "content": "QUESTION"}]).split("QUESTION")
        except Exception:  # Templates are programs and may reject this conversation.
            opening = ""
        tokens = tokenizer(opening, add_special_tokens=False).input_ids
        start = find_start_token(tokenizer)
        tokens = tokens if start in (None, *tokens[:1]) else [start, *tokens]
        if tokens and max(tokens) < vocabulary and 2 * len(tokens) <= length:
            return tokens
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not isinstance(start, int) or start >= vocabulary:
        raise FFPError("the model has no start token to sample text from; choose a dataset without self")
    return [start]


def cache_bytes(tokens: int, layers: int, heads: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes of the KV cache in which a model samples a number of tokens."""
    return 2 * layers * heads * head_dim * itemsize * min(tokens, TOKENS_AT_ONCE)

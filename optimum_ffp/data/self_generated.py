"""Text that a model writes itself: beside the data, or for when there is none."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..errors import FFPError
from ..utils.batch_size import with_halving_batches
from ..utils.progress import progress_bar


# Windows are put together from passages of at most this many tokens, each written from the start token: a small model
# loses its thread in longer ones, and many short ones are written at the price of a few long ones.
PASSAGE = 512
# Tokens whose keys and values are held at once.
TOKENS_AT_ONCE = 16 * 1024


def passages_of(length: int) -> tuple[int, int]:
    """How many passages a window of this many tokens is put together from, and their length."""
    count = math.ceil(length / PASSAGE)
    return count, math.ceil(length / count)


def passages_at_once(windows: int, length: int) -> int:
    """Passages that are written side by side, for this many windows of this many tokens."""
    count, tokens = passages_of(length)
    return min(windows * count, max(1, TOKENS_AT_ONCE // tokens))


def sample_from_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int
) -> torch.Tensor:
    """Text that the model itself writes from its start token at temperature 1.

    Where a document ends the next begins, with the start token too, as in the packed text that models are trained on.
    The model doesn't write that token itself: it comes nowhere else but at the beginning of every passage.

    Args:
        model: The dense model.
        tokenizer: Its tokenizer.
        count: Windows to write, of one or more passages (see `PASSAGE`). As many passages are written side by side as
            `TOKENS_AT_ONCE` allows, fewer where memory runs out.
        length: Tokens a window.
        seed: Of the sampling.

    Returns:
        Token ids, shape `[count, length]`. Each window begins with the start token that its text was sampled from.

    Raises:
        FFPError: If the tokenizer has no start or end token to begin with.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise FFPError(
            "the tokenizer has neither a start nor an end token to sample text from; name a dataset other than self, "
            "and leave self_share at 0"
        )
    passages, tokens = passages_of(length)
    prompts = torch.full((count * passages, 1), start, device=model.device)
    plain_sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=tokens - 1, pad_token_id=start)
    ends = _end_tokens(model, tokenizer)
    documents = LogitsProcessorList([] if start in ends else [_Documents(start, ends)])

    def write(batch_size: int) -> torch.Tensor:
        batches = prompts.split(batch_size)
        with (
            progress_bar(len(batches) * (tokens - 1), "Sampling text", "token") as bar,
            _generating(model, plain_sampling),
            torch.random.fork_rng(),
        ):
            torch.manual_seed(seed)
            return torch.cat(
                [
                    model.generate(
                        prompt,
                        # The start token may be the padding token too, and must not be masked for it.
                        attention_mask=torch.ones_like(prompt),
                        logits_processor=documents,
                        stopping_criteria=StoppingCriteriaList([_Ticks(bar)]),
                    ).cpu()
                    for prompt in batches
                ]
            )

    return with_halving_batches(write, passages_at_once(count, length)).reshape(count, -1)[:, :length]


@contextmanager
def _generating(model: PreTrainedModel, how: GenerationConfig) -> Iterator[None]:
    # What an argument of generate leaves open is filled in from the model's own: an end token, which pads the rest of
    # the window, a temperature, a penalty.
    own, model.generation_config = model.generation_config, how
    try:
        yield
    finally:
        model.generation_config = own


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    return {token for token in (*known, tokenizer.eos_token_id) if token is not None}


class _Documents(LogitsProcessor):
    # The start token comes after every end token, and nowhere else.
    def __init__(self, start: int, ends: set[int]):
        self.start, self.ends = start, torch.tensor(sorted(ends))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ended = torch.isin(input_ids[:, -1], self.ends.to(input_ids.device))
        starts = torch.zeros_like(scores, dtype=torch.bool)
        starts[:, self.start] = True
        return scores.masked_fill(starts != ended[:, None], -torch.inf)


class _Ticks(StoppingCriteria):
    # generate has no progress callback; a criterion is asked after every token.
    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

"""Text sampled from the model, in addition to a dataset or instead of one."""

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


# Maximum tokens per passage. A window consists of passages, each sampled from the start token: small models become
# incoherent in longer ones, and many short passages can be sampled as one batch.
PASSAGE = 512
# Maximum tokens in the KV cache.
TOKENS_AT_ONCE = 16 * 1024


def passages_of(length: int) -> tuple[int, int]:
    """Number of passages per window of `length` tokens, and tokens per passage."""
    count = math.ceil(length / PASSAGE)
    return count, math.ceil(length / count)


def passages_at_once(windows: int, length: int) -> int:
    """Batch size of passages, for `windows` windows of `length` tokens."""
    count, tokens = passages_of(length)
    return min(windows * count, max(1, TOKENS_AT_ONCE // tokens))


def sample_from_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int
) -> torch.Tensor:
    """Samples text from the model, from its start token at temperature 1.

    An end token is followed by the start token and the next document, as in packed training data. Elsewhere in a
    passage the start token is not sampled.

    Args:
        model: The dense model.
        tokenizer: Tokenizer of the model.
        count: Number of windows, each of one or more passages (see `PASSAGE`). Passages are sampled in batches of at
            most `TOKENS_AT_ONCE` tokens, which are halved if memory runs out.
        length: Tokens per window.
        seed: Random seed.

    Returns:
        Token ids, shape `[count, length]`. Each window begins with the start token.

    Raises:
        FFPError: If the tokenizer has neither a start nor an end token.
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
                        # Otherwise a start token that is also the padding token would be masked.
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
    # Replace the model's generation config: `generate` takes from it what its arguments leave open, such as an end
    # token (and then pads the window), a temperature or a penalty.
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
    # Allows the start token after end tokens only, and nothing else there.
    def __init__(self, start: int, ends: set[int]):
        self.start, self.ends = start, torch.tensor(sorted(ends))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ended = torch.isin(input_ids[:, -1], self.ends.to(input_ids.device))
        starts = torch.zeros_like(scores, dtype=torch.bool)
        starts[:, self.start] = True
        return scores.masked_fill(starts != ended[:, None], -torch.inf)


class _Ticks(StoppingCriteria):
    # `generate` has no progress callback; stopping criteria are called after every token.
    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

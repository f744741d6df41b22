"""Text sampled from the model, in addition to a dataset or instead of one."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

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
from .columns import apply_template
from .cutting import find_start_token


NEEDS_WEIGHTS = (
    "text that the model writes itself needs all weights on the device; choose offload 'none', or a dataset without "
    "'self'"
)
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: int,
    prefixes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Samples text from the model at temperature 1.

    Without a chat template a document begins with the start token. With one it is a conversation, as in Magpie (Xu et
    al. 2024): after the template's opening of a user's turn the model writes the question, and after that of the
    assistant's turn the answer. A document that ends is followed by the next one, as in packed training data.
    Elsewhere in a passage the start token is not sampled.

    Args:
        model: The dense model.
        tokenizer: Tokenizer of the model.
        count: Number of windows, each of one or more passages (see `PASSAGE`). Passages are sampled in batches of at
            most `TOKENS_AT_ONCE` tokens, which are halved if memory runs out.
        length: Tokens per window.
        seed: Random seed.
        prefixes: Token ids of text, shape `[prefixes, tokens]`, that documents of a model without a chat template
            begin with, each in turn.

    Returns:
        Token ids, shape `[count, length]`. Each window begins with the start token, or as a conversation does.

    Raises:
        FFPError: If the tokenizer has neither a start nor an end token.
    """
    passages, tokens = passages_of(length)
    form = find_form(model, tokenizer, tokens)
    prompts = torch.tensor([form.opening] * (count * passages))
    if prefixes is not None and not form.is_conversation:
        begins = prefixes[torch.arange(len(prompts)) % len(prefixes)].to(prompts)
        prompts = torch.cat([prompts, begins], 1)[:, : tokens - 1]
    prompts, written = prompts.to(model.device), tokens - prompts.shape[1]
    plain_sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=written, pad_token_id=form.start)

    def write(batch_size: int) -> torch.Tensor:
        batches = prompts.split(batch_size)
        with (
            progress_bar(len(batches) * written, "Sampling text", "token") as bar,
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
                        logits_processor=LogitsProcessorList([_Turns(form, len(prompt))]),
                        stopping_criteria=StoppingCriteriaList([_Ticks(bar)]),
                    ).cpu()
                    for prompt in batches
                ]
            )

    return with_halving_batches(write, passages_at_once(count, length)).reshape(count, -1)[:, :length]


def has_start_token(tokens: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether windows of `sample_from_model` begin with the start token; conversations of some models don't."""
    start = _start_of(tokenizer)
    return start is not None and bool((tokens[:, 0] == start).all())


def _start_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


@contextmanager
def _generating(model: PreTrainedModel, how: GenerationConfig) -> Iterator[None]:
    # Replace the model's generation config: `generate` takes from it what its arguments leave open, such as an end
    # token (and then pads the window), a temperature or a penalty.
    own, model.generation_config = model.generation_config, how
    try:
        yield
    finally:
        model.generation_config = own


class Form(NamedTuple):
    """What documents consist of beside the text that the model writes.

    Attributes:
        start: The start token, which is not sampled unless it ends turns too.
        opening: Tokens that a passage begins with.
        turns: For each turn, in a cycle: the tokens that end it, and those that stand between it and the next one.
    """

    start: int
    opening: list[int]
    turns: list[tuple[set[int], list[int]]]

    @property
    def is_conversation(self) -> bool:
        """Whether documents have the form of the chat template."""
        return len(self.turns) > 1


def find_form(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> Form:
    """The form of documents: a conversation if the chat template has one, otherwise text after the start token.

    Args:
        model: The dense model.
        tokenizer: Tokenizer of the model.
        length: Tokens per passage; if a conversation's opening takes more than half of it, there is none.

    Raises:
        FFPError: If the tokenizer has neither a start nor an end token, or the model has no embedding for it.
    """
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    ends = {token for token in (*known, tokenizer.eos_token_id) if token is not None}
    start = _start_of(tokenizer)
    if start is None:
        raise FFPError(
            "the tokenizer has neither a start nor an end token to sample text from; name a dataset without self"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if start >= rows:
        raise FFPError(
            f"the model has no embedding for the start token {tokenizer.decode([start])!r}, which its own text begins "
            "with; name a dataset without self"
        )
    opening, (end_of_question, *before_answer), (end_of_answer, *after_answer) = _conversation(tokenizer)
    ends_turns = {end_of_question, end_of_answer} <= _special_tokens(tokenizer)
    # A tokenizer may have special tokens that were added without resizing the model.
    known_tokens = ends_turns and max(opening + before_answer + after_answer + [end_of_question, end_of_answer]) < rows
    if known_tokens and 2 * len(opening) <= length:
        question, answer = ends | {end_of_question}, ends | {end_of_answer}
        return Form(start, opening, [(question, before_answer), (answer, after_answer + opening)])
    return Form(start, [start], [] if start in ends else [(ends, [start])])


def _conversation(tokenizer: PreTrainedTokenizerBase) -> Sequence[list[int | None]]:
    """Tokens of the chat template before a question, between it and its answer, and after that; `None` if unknown."""
    question, answer = "THE QUESTION", "THE ANSWER"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        opening, rest = apply_template(tokenizer, messages).split(question)
        middle, end = rest.split(answer)
    except Exception:  # There is no template, or it wants other conversations: a template may raise anything.
        return [], [None], [None]
    parts = (opening, middle.lstrip(), end.lstrip())
    opening, middle, end = (tokenizer(part, add_special_tokens=False).input_ids for part in parts)
    start = find_start_token(tokenizer)
    return opening if start in (None, *opening[:1]) else [start, *opening], middle or [None], end or [None]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    # A turn that ends with words, as in Llama 2's template, ends in the middle of text too.
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}


class _Turns(LogitsProcessor):
    # Writes what stands between turns, and keeps the start token out of them. For one call of `generate`.
    def __init__(self, form: Form, rows: int):
        self.turns = form.turns
        self.barred = [] if any(form.start in ends for ends, _ in form.turns) else [form.start]
        self.next = [cycle(form.turns) for _ in range(rows)]
        self.turn = [next(turns, None) for turns in self.next]
        self.given: list[list[int]] = [[] for _ in range(rows)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.turns:
            return scores
        scores = scores.clone()
        scores[:, self.barred] = -torch.inf
        for row, last in enumerate(input_ids[:, -1].tolist()):
            ends, between = self.turn[row]
            if not self.given[row] and last in ends:
                self.given[row], self.turn[row] = list(between), next(self.next[row])
            if self.given[row]:
                scores[row] = -torch.inf
                scores[row, self.given[row].pop(0)] = 0
        return scores


class _Ticks(StoppingCriteria):
    # `generate` has no progress callback; stopping criteria are called after every token.
    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

"""Prefill and decode speed of several models, interleaved so that whatever slows the machine hits all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList


@dataclass(frozen=True)
class Speed:
    """Medians of one model, and what they were measured on.

    Attributes:
        prefill: Tokens of prompt a second, until the first new token is there.
        decode: New tokens a second after the first.
        prompt_tokens, new_tokens: Tokens of prompt, and new tokens after the first.
        batch_size: Prompts at once.
        repeats: Measurements that the medians are of.
    """

    prefill: float
    decode: float
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    repeats: int


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    prompt_tokens: int = 512,
    new_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    on_measured: Callable[[int], Any] | None = None,
) -> dict[str, Speed]:
    """Lets the models generate in turn: A, B, A, B, ... A first round warms up and isn't counted.

    The prompt is random tokens: speed does not depend on them.

    Args:
        models: Causal LMs by name.
        prompt_tokens: Tokens of prompt.
        new_tokens: Tokens to decode after the first; both are fewer where a model knows fewer positions.
        batch_size: Prompts at once.
        repeats: Rounds that are counted.
        on_measured: Called with 1 after every measurement, `(repeats + 1) · models` times.
    """
    limits = [getattr(model.config, "max_position_embeddings", None) for model in models.values()]
    limit = min((limit for limit in limits if limit), default=prompt_tokens + new_tokens + 1)
    new_tokens = min(new_tokens, limit - 2)
    prompt_tokens = min(prompt_tokens, limit - 1 - new_tokens)
    vocabulary = min(model.get_input_embeddings().num_embeddings for model in models.values())
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            measured = time_generation(model, prompt, new_tokens)
            if repeat:
                seconds[name].append(measured)
            if on_measured:
                on_measured(1)
    result = {}
    for name, rows in seconds.items():
        prefill, decode = (median(column) for column in zip(*rows))
        rates = batch_size * prompt_tokens / prefill, batch_size * new_tokens / decode
        result[name] = Speed(*rates, prompt_tokens, new_tokens, batch_size, repeats)
    return result


@torch.no_grad()
def time_generation(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds until the first new token is there, and of decoding `new_tokens` more.

    Args:
        model: A causal LM.
        prompt: Token ids, shape `[batch, tokens]`.
        new_tokens: Tokens to decode after the first.
    """
    prompt = prompt.to(model.device)
    marks = _Marks()
    start = _clock(model.device)
    model.generate(
        prompt,
        # Random tokens may be the padding token too, and must not be masked for it.
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=1 + new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([marks]),
    )
    return marks.times[0] - start, marks.times[-1] - marks.times[0]


class _Marks(StoppingCriteria):
    # generate has no callback that is told when a token is there; a criterion is asked after every one.
    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.times.append(_clock(input_ids.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _clock(device: torch.device) -> float:
    # An accelerator returns from a call before it has done the work.
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()

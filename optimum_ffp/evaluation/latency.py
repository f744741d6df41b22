"""Prefill and decode speed of several models, interleaved so that external load affects all of them alike."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from ..utils.generation import generate
from ..utils.lm_head import embedding_of
from ..utils.progress import progress_bar


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int = 1,
    repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """Measure the speed of generation of several models, in turns (`time_models`).

    Args:
        models: Causal LMs by name.
        prompt_tokens: Number of prompt tokens.
        new_tokens: Number of tokens to generate after the first. Both numbers are limited by the positions of the
            models.
        batch_size: Prompts per batch.
        repeats: Number of rounds after the warmup.

    Returns:
        By name the medians `prefill`, prompt tokens per second until the first new token, and `decode`, new tokens per
        second after it, with the `prompt_tokens`, `new_tokens`, `batch_size` and `repeats` of the measurement.
    """
    limits = [getattr(model.config, "max_position_embeddings", None) for model in models.values()]
    limit = min((limit for limit in limits if limit), default=prompt_tokens + new_tokens + 1)
    new_tokens = min(new_tokens, limit - 2)
    prompt_tokens = min(prompt_tokens, limit - 1 - new_tokens)
    seconds = time_models(models, prompt_tokens, new_tokens, batch_size, repeats)
    result = {}
    for name, rows in seconds.items():
        prefill, decode = (median(column) for column in zip(*rows))
        result[name] = {
            "prefill": batch_size * prompt_tokens / prefill,
            "decode": batch_size * new_tokens / decode,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch_size": batch_size,
            "repeats": repeats,
        }
    return result


def time_models(
    models: Mapping[Any, PreTrainedModel], prompt_tokens: int, new_tokens: int, batch_size: int, repeats: int
) -> dict[Any, list[tuple[float, float]]]:
    """Time generation of the models in turns: A, B, A, B, ... The first round is a warmup.

    The prompt consists of random tokens, since speed does not depend on them. Arguments are as for `measure_speed`.

    Returns:
        By name the seconds of every round until the first new token, and for the others.
    """
    vocabulary = min(embedding_of(model).num_embeddings for model in models.values())
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator)
    seconds: dict[Any, list[tuple[float, float]]] = {name: [] for name in models}
    with progress_bar((repeats + 1) * len(models), "Speed", "measurement") as bar:
        for _ in range(repeats + 1):
            for name, model in models.items():
                seconds[name].append(time_generation(model, prompt, new_tokens))
                bar.update()
    return {name: rows[1:] for name, rows in seconds.items()}


@torch.no_grad()
def time_generation(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Measure the seconds until the first token after a prompt, shape `[batch, tokens]`, and for `new_tokens` more."""
    prompt = prompt.to(model.device)
    clock = _TokenClock()
    start = clock.now(model.device)
    generate(
        model,
        prompt,
        max_new_tokens=1 + new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return clock.times[0] - start, clock.times[-1] - clock.times[0]


class _TokenClock(StoppingCriteria):
    # `generate` has no callback per token; stopping criteria are called after every token.
    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(self.now(input_ids.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @staticmethod
    def now(device: torch.device) -> float:
        # Accelerators execute asynchronously.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

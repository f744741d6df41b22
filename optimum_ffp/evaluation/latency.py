"""Prefill and decode speed of several models, interleaved so that external load affects all of them alike."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteriaList

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
    """Measure the speed of generation of several models by name, in turns (`time_models`).

    A number of `new_tokens` is generated after the first. It and that of `prompt_tokens` are limited by the models'
    positions. There are as many `repeats` after a warmup.

    Returns:
        By name the medians `prefill`, prompt tokens per second until the first new token, and `decode`, new tokens per
        second after it, and the other arguments.
    """
    limits = (getattr(model.config, "max_position_embeddings", None) for model in models.values())
    limit = min(filter(None, limits), default=prompt_tokens + new_tokens + 1)
    new_tokens = min(new_tokens, limit - 2)
    prompt_tokens = min(prompt_tokens, limit - 1 - new_tokens)
    seconds = time_models(models, prompt_tokens, new_tokens, batch_size, repeats)
    medians = {name: [median(column) for column in zip(*rows)] for name, rows in seconds.items()}
    return {
        name: {
            "prefill": batch_size * prompt_tokens / prefill,
            "decode": batch_size * new_tokens / decode,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch_size": batch_size,
            "repeats": repeats,
        }
        for name, (prefill, decode) in medians.items()
    }


def time_models(
    models: Mapping[Any, PreTrainedModel], prompt_tokens: int, new_tokens: int, batch_size: int, repeats: int
) -> dict[Any, list[tuple[float, float]]]:
    """Return by model the seconds of every round until the first new token, and for the others.

    Models take turns: A, B, A, B, ... The first round is a warmup. The prompt consists of random tokens, since speed
    does not depend on them. Arguments are as for `measure_speed`.
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
    prompt, times = prompt.to(model.device), []

    def note_time(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        # Accelerators execute asynchronously.
        if tokens.device.type != "cpu":
            torch.accelerator.synchronize(tokens.device)
        times.append(time.perf_counter())
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    note_time(prompt)
    generate(
        model,
        prompt,
        max_new_tokens=1 + new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        # There is no callback per token, but stopping criteria are called after every token.
        stopping_criteria=StoppingCriteriaList([note_time]),
    )
    return times[1] - times[0], times[-1] - times[1]

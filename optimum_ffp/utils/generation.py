"""Generation of tokens."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel


def generate(model: PreTrainedModel, prompts: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return prompts, shape `[prompts, tokens]`, with the tokens that a causal LM generates after them."""
    # By default, tokens that equal the padding token would be masked.
    return cast(Any, model).generate(prompts, attention_mask=torch.ones_like(prompts), **options)

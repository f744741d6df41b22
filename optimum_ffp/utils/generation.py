"""Generation of tokens."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel


def generate(
    model: PreTrainedModel, prompts: torch.Tensor, mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Return prompts, shape `[prompts, tokens]`, with the tokens that a causal LM generates after them.

    The mask, of the same shape, is 0 for padding, which is on the left.
    """
    # By default, tokens that equal the padding token would be masked.
    mask = torch.ones_like(prompts) if mask is None else mask
    return cast(Any, model).generate(prompts, attention_mask=mask, **options)

"""Generation of tokens."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel


def generate(model: PreTrainedModel, prompts: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return prompts with the tokens that a causal LM generates after them.

    Args:
        model: A causal LM.
        prompts: Token ids, shape `[prompts, tokens]`. By default, those that equal the padding token would be masked.
        options: Further arguments of the model's `generate`.
    """
    return cast(Any, model).generate(prompts, attention_mask=torch.ones_like(prompts), **options)

"""Floating-point operations of a forward pass."""

from torch import nn
from transformers import PreTrainedModel

from ..modeling.families.base import head_dimension


def forward_operations(model: PreTrainedModel, length: int) -> tuple[int, int]:
    """Return the floating-point operations of a forward pass per token of a window: of the layers, and of the head.

    A token takes two per parameter of a matrix, and in the layers those of attention to the tokens before it.

    Args:
        model: The model, for example on the meta device.
        length: Tokens per window.
    """
    head = model.get_output_embeddings().weight
    others = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)} | {id(head)}
    parameters = sum(one.numel() for one in model.parameters() if one.ndim == 2 and id(one) not in others)
    config = model.config
    # Heads may be wider together than the hidden state.
    width = config.num_attention_heads * head_dimension(config)
    # The product of queries and keys and that with the values, with half of all tokens on average.
    attention = 2 * length * width * config.num_hidden_layers
    return 2 * parameters + attention, 2 * head.numel()


def head_share(model: PreTrainedModel, length: int) -> float:
    """Return the share of the head in the operations of a forward pass over windows of `length` tokens."""
    in_layers, in_head = forward_operations(model, length)
    return in_head / (in_layers + in_head)

"""Limits on what a model costs, from the options of the budget."""

import math
from collections.abc import Sequence
from fractions import Fraction

from transformers import PreTrainedModel, StaticCache

from ..allocation.budget import Limit, linear_costs, parameter_costs, sparsity_limit
from ..allocation.policy import Unit, block_parameters
from ..config import FFPConfig
from ..errors import FFPError
from .families import find_family


def find_limits(model: PreTrainedModel, units: Sequence[Unit], config: FFPConfig) -> list[Limit]:
    """Return the limits that a budget sets.

    Args:
        model: The dense model; may be on the meta device. Its dtype is that of the weights and of the KV cache.
        units: Its units.
        config: The budget.

    Raises:
        FFPError: If the KV cache is limited, and no KV head of this model can be removed, nor an attention whole.
    """
    limits = [] if config.sparsity is None else [sparsity_limit(units, config.sparsity)]
    if not config.limits.keys() - {"sparsity"}:
        return limits
    parameters, outside = parameter_costs(units), model.num_parameters() - block_parameters(units)
    if config.params is not None:
        limits.append(Limit("params", config.params, config.params - outside, parameters, lambda cost: cost + outside))
    if config.memory is not None:
        itemsize = model.dtype.itemsize
        cache = _cache_bytes(model, units, config)
        costs = [itemsize * weights + keys for weights, keys in zip(parameters, cache)]
        rest = itemsize * outside
        limits.append(Limit("memory", config.memory, config.memory - rest, costs, lambda cost: cost + rest))
    if config.kv_cache is not None:
        groups = find_family(model.config).attention_groups(model.config)
        if "kv_group" not in groups and config.depth == "none":
            reason = "its layers have a single KV head" if groups == ("query_head",) else "its attention is not pruned"
            raise FFPError(f"the KV cache of this model can't shrink: {reason}; choose params or memory, or depth")
        cache = _cache_bytes(model, units, config)
        total = int(sum(costs[-1] for costs in cache))
        # Exact decimal arithmetic, as for the sparsity.
        allowed = math.floor(Fraction(str(config.kv_cache)) * total)
        limits.append(Limit("kv_cache", config.kv_cache, allowed, cache, lambda cost: cost / total))
    return limits


def _cache_bytes(model: PreTrainedModel, units: Sequence[Unit], config: FFPConfig) -> list:
    """Return the bytes of KV cache of every unit by its size, each of shape `[groups + 1]`."""
    _, kv_heads, head_dim = find_family(model.config).heads(model.config)
    # Layers with a sliding window keep no more tokens than it has.
    tokens = [layer.max_cache_len for layer in StaticCache(model.config, max_cache_len=config.context).layers]
    heads = [
        2 * head_dim * model.dtype.itemsize * config.sequences * tokens[unit.layer] * (unit.kind == "attention")
        for unit in units
    ]
    removable = [unit.group == "kv_group" for unit in units]
    return linear_costs(
        units,
        [size * goes for size, goes in zip(heads, removable)],
        [size * kv_heads * (not goes) for size, goes in zip(heads, removable)],
    )

"""Limits on what a model costs, from the options of the budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache

from ..allocation.budget import Limit, parameter_costs, sparsity_limit
from ..allocation.policy import Unit, block_parameters
from ..config import FFPConfig
from ..config.prune import WORKLOAD
from ..errors import FFPError
from ..utils.lm_head import token_parameters
from ..utils.precision import move
from .families import find_family


# Vocabularies are a multiple of this, for tensor cores.
VOCABULARY_MULTIPLE = 64
# Number of smaller vocabularies to compare, and the smallest one, relative to the dense model's.
CANDIDATE_SIZES, LEAST_VOCABULARY = 4, 1 / 16


def kept_tokens(config: PretrainedConfig, asked: int | str | None) -> int:
    """Return the size of the vocabulary of a pruned model, which has at most the tokens asked for.

    Raises:
        FFPError: If that removes no tokens.
    """
    # An earlier prune may have trimmed it.
    left = getattr(config, "trimmed_vocab_size", config.vocab_size)
    if asked is None:
        return left
    if int(asked) >= left:
        raise FFPError(f"vocabulary {asked} leaves nothing to remove: the model has {left} tokens; allow fewer")
    return int(asked) // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE


def dropped_parameters(model: PreTrainedModel, asked: int | str | None) -> int:
    """Return the number of parameters of the tokens that a vocabulary of at most `asked` lacks, as `kept_tokens`."""
    return (model.config.vocab_size - kept_tokens(model.config, asked)) * _parameters_per_token(model)


def _parameters_per_token(model: PreTrainedModel) -> int:
    return sum(one.numel() // len(one) for one in token_parameters(model).values())


def candidate_sizes(model: PreTrainedModel, units: Sequence[Unit], config: FFPConfig) -> list[int | None]:
    """Return the sizes of vocabularies to compare under the limits on parameters or memory of a config.

    They are evenly spaced from the dense model's (`None`) to the one that meets the limits alone, or almost none.
    """
    whole, size, excess = replace(config, vocabulary=None), kept_tokens(model.config, None), 0.0
    for limit in find_limits(model, units, whole, whole.limits, None):
        cost = _parameters_per_token(model) * (model.dtype.itemsize if limit.option == "memory" else 1)
        excess = max(excess, (limit.cost(unit.groups for unit in units) - limit.allowed) / cost)
    least = max(size - excess, size * LEAST_VOCABULARY)
    sizes = (size - share * (size - least) for share in np.linspace(0, 1, CANDIDATE_SIZES + 1)[1:])
    # Rounded up, so that a little is left to remove from layers.
    return [None, *(math.ceil(one / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE for one in sizes)]


def find_limits(
    model: PreTrainedModel,
    units: Sequence[Unit],
    config: FFPConfig,
    given: Mapping[str, float],
    times: dict[str, Any] | None,
) -> list[Limit]:
    """Return the limits that a budget sets.

    Args:
        model: The dense model; may be on the meta device. Its dtype is that of the weights and of the KV cache.
        units: Its units.
        config: Options of the KV cache, the depth and the workload.
        given: Limits by option.
        times: Measured times, as returned by `measure_costs`; the limit on the speed is pending without.

    Raises:
        FFPError: If the KV cache is limited, and no KV head of this model can be removed, nor an attention whole, the
            times aren't those of this model, or it has no experts.
    """
    limits = [sparsity_limit(units, given["sparsity"])] if "sparsity" in given else []
    if "experts" in given:
        limits.append(_experts_limit(model.config, units, int(given["experts"])))
    if not given.keys() - {"sparsity", "experts"}:
        return limits
    parameters, outside = parameter_costs(units), model.num_parameters() - block_parameters(units)
    tokens = dropped_parameters(model, config.vocabulary)
    outside -= tokens
    cache, fixed = _cache_bytes(model, units, config) if given.keys() & {"memory", "kv_cache"} else ([], 0)
    if "params" in given:
        asked = _asked(given["params"], model.num_parameters())
        limits.append(Limit("params", asked, asked - outside, parameters, lambda cost: cost + outside, tokens=tokens))
    if "memory" in given:
        itemsize = model.dtype.itemsize
        costs = [itemsize * weights + keys for weights, keys in zip(parameters, cache)]
        rest = itemsize * outside + fixed
        tokens *= itemsize
        asked = _asked(given["memory"], sum(cost[-1] for cost in costs) + rest + tokens)
        limits.append(Limit("memory", asked, asked - rest, costs, lambda cost: cost + rest, tokens=tokens))
    if "kv_cache" in given:
        limits.append(_kv_cache_limit(model.config, config.depth, cache, given["kv_cache"]))
    if "speedup" in given and times:
        dropped = model.config.vocab_size - kept_tokens(model.config, config.vocabulary)
        limits.append(speedup_limit(units, times, given["speedup"], dropped))
    elif "speedup" in given:
        costs, pending = [np.zeros(unit.groups + 1) for unit in units], f"times of {config.workload or WORKLOAD}"
        limits.append(Limit("speedup", given["speedup"], math.inf, costs, pending=pending))
    return limits


def _asked(value: float | str, dense: float) -> float:
    """Return the value of an option, which may be a percentage of that of the dense model."""
    return math.floor(Fraction(value[:-1]) * int(dense) / 100) if isinstance(value, str) else value


def _kv_cache_limit(config: PretrainedConfig, depth: str, cache: Sequence[np.ndarray], fraction: float) -> Limit:
    """Return the limit for a fraction of the dense model's KV cache, from the bytes of every unit by its size."""
    groups = find_family(config).attention_groups(config)
    if "kv_group" not in groups and depth == "none":
        reason = "its layers have a single KV head" if groups == ("query_head",) else "its attention is not pruned"
        raise FFPError(f"the KV cache of this model can't shrink: {reason}; choose params or memory, or depth")
    total = int(sum(costs[-1] for costs in cache))
    # Exact decimal arithmetic, as for the sparsity.
    allowed = math.floor(Fraction(str(fraction)) * total)
    return Limit("kv_cache", fraction, allowed, cache, lambda cost: cost / total)


def _experts_limit(config: PretrainedConfig, units: Sequence[Unit], kept: int) -> Limit:
    """Return the limit for a number of experts per layer, whose cost are their parameters."""
    count, total = find_family(config).count_experts(config), block_parameters(units)
    return Limit("experts", kept, total * kept // count, parameter_costs(units), lambda cost: count * cost / total)


def speedup_limit(units: Sequence[Unit], table: dict[str, Any], speedup: float, dropped: int = 0) -> Limit:
    """Return the limit for a minimum speed, as a multiple of the dense model's, with a number of tokens `dropped`.

    `table` has measured times, as returned by `measure_costs`, with a `scale` that corrects those of units. Raises
    `FFPError` if they aren't those of a model with these units.
    """
    try:
        rows = {
            (row["unit"], row["group"], row["sizes"][-1], layer): (row["sizes"], row["seconds"])
            for row in table["units"]
            for layer in row["layers"]
        }
        keys = ((unit.kind, unit.group, unit.groups, unit.layer) for unit in units)
        scale = table.get("scale", 1)
        costs = [scale * np.interp(range(unit.groups + 1), *rows[key]) for unit, key in zip(units, keys)]
        dense, total = float(table["dense"]), float(sum(seconds[-1] for seconds in costs))
        saved = dropped * float(table.get("token", 0))
    except (KeyError, TypeError, ValueError):
        raise FFPError("the costs were measured on another model; pass a new file to measure again") from None
    return Limit(
        "speedup",
        speedup,
        allowed=total + saved - dense * (1 - 1 / speedup),
        costs=costs,
        value=lambda cost: dense / (dense - saved - total + cost),
        rises=False,
        tokens=1 - dense / (dense - saved),
    )


def _cache_bytes(model: PreTrainedModel, units: Sequence[Unit], config: FFPConfig) -> tuple[list[np.ndarray], int]:
    """Return the bytes of KV cache of every unit by its size, each of shape `[groups + 1]`, and those of no unit."""
    _, kv_heads, head_dim = find_family(model.config).heads(model.config)
    # Layers with a sliding window keep no more tokens than it has, and those without attention none.
    layers = StaticCache(model.config, max_cache_len=int(config.context)).layers
    tokens = [vars(layer).get("max_cache_len", 0) for layer in layers]
    # DeepSeek's keys and values have dimensions of their own.
    dims = (getattr(model.config, name, None) or head_dim for name in ("qk_head_dim", "v_head_dim"))
    head_bytes = sum(dims) * model.dtype.itemsize * config.sequences
    costs = []
    for unit in units:
        sizes = np.arange(unit.groups + 1)
        # Other groups leave all KV heads, until the attention is removed.
        kept = sizes if unit.group == "kv_group" else kv_heads * (sizes > 0)
        costs.append(kept * head_bytes * tokens[unit.layer] * (unit.kind == "attention"))
    owned = {unit.layer for unit in units if unit.kind == "attention"}
    fixed = sum(kv_heads * head_bytes * count for layer, count in enumerate(tokens) if layer not in owned)
    return costs, fixed + (config.sequences * _state_bytes(model) if 0 in tokens else 0)


def _state_bytes(model: PreTrainedModel) -> int:
    """Return the bytes per sequence of the states of layers without attention, which don't grow with the context."""
    cache = DynamicCache(config=model.config)
    with torch.device("meta"):
        empty = move(type(model)(model.config), model.dtype)
        empty(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    states = (vars(layer).get(name, {}) for layer in cache.layers for name in ("conv_states", "recurrent_states"))
    return sum(state.nbytes for by_index in states for state in by_index.values() if state is not None)

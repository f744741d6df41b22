"""Weights with the names, shapes and row order of llama.cpp."""

import math
from collections.abc import Iterator

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..modeling.families.base import head_dimension
from .architectures import Architecture, LayerSizes, rotary_parameters


QUERY, KEY, VALUE, QUERY_KEY_VALUE = (f"self_attn.{name}_proj" for name in ("q", "k", "v", "qkv"))


def layer_sizes(model: PreTrainedModel) -> list[LayerSizes]:
    """Return the sizes of all layers, from the shapes of the weights."""
    dimension = head_dimension(model.config)
    return [
        LayerSizes(
            heads=layer.self_attn.q_proj.out_features // dimension,
            kv_heads=layer.self_attn.k_proj.out_features // dimension,
            width=layer.mlp.gate_proj.out_features,
        )
        for layer in model.base_model.layers
    ]


def tensors(
    model: PreTrainedModel, architecture: Architecture, padded: LayerSizes | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors with their GGUF names, float32.

    Args:
        model: The model.
        architecture: Architecture to write.
        padded: Size to zero-pad every layer to, which doesn't change the output; no padding if `None`.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    base = model.base_model
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(numbers[architecture.name], len(base.layers))
    yield f"{names['model.embed_tokens']}.weight", base.embed_tokens.weight.float()
    yield f"{names['model.norm']}.weight", base.norm.weight.float() + architecture.norm_offset
    if not model.config.tie_word_embeddings:
        yield f"{names['lm_head']}.weight", model.get_output_embeddings().weight.float()
    factors = rotary_factors(model.config)
    if factors is not None:
        yield "rope_freqs.weight", factors
    dimension = head_dimension(model.config)
    for index, layer in enumerate(base.layers):
        weights = dict(_layer(layer, dimension, padded))
        if architecture.interleaved:
            for module, kind in weights:
                if module in (QUERY, KEY):
                    weights[module, kind] = interleave(weights[module, kind], dimension)
        if architecture.fused:
            parts = [weights.pop((module, "weight")) for module in (QUERY, KEY, VALUE)]
            weights[QUERY_KEY_VALUE, "weight"] = torch.cat(parts)
        for (module, kind), tensor in weights.items():
            if module.endswith("norm"):
                tensor = tensor + architecture.norm_offset
            yield f"{names[f'model.layers.{index}.{module}']}.{kind}", tensor


def _layer(
    layer: torch.nn.Module, dimension: int, padded: LayerSizes | None
) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    """Yield the parameters by module and kind (`"weight"` or `"bias"`)."""
    # By projection: number of sections before and after padding, and padded size of a section.
    rows: dict[str, tuple[int, int, int]] = {}
    columns: dict[str, tuple[int, int, int]] = {}
    if padded is not None:
        # Query heads are grouped by KV head.
        kv_heads = layer.get_submodule(KEY).out_features // dimension
        queries = kv_heads, padded.kv_heads, padded.heads // padded.kv_heads * dimension
        keys, channels = (1, 1, padded.kv_heads * dimension), (1, 1, padded.width)
        rows = {QUERY: queries, KEY: keys, VALUE: keys, "mlp.gate_proj": channels, "mlp.up_proj": channels}
        columns = {"self_attn.o_proj": queries, "mlp.down_proj": channels}
    for name, parameter in layer.named_parameters():
        module, _, kind = name.rpartition(".")
        tensor = parameter.float()
        if module in rows:
            tensor = _pad_sections(tensor, 0, *rows[module])
        elif module in columns and kind == "weight":
            tensor = _pad_sections(tensor, 1, *columns[module])
        yield (module, kind), tensor


def _pad_sections(tensor: torch.Tensor, dim: int, before: int, after: int, size: int) -> torch.Tensor:
    sections = _pad_end(tensor.unflatten(dim, (before, -1)), dim + 1, size)
    return _pad_end(sections, dim, after).flatten(dim, dim + 1)


def _pad_end(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    missing = list(tensor.shape)
    missing[dim] = size - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim)


def interleave(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Permute the rows of each head from halves to pairs: row `i` of the second half follows row `i` of the first."""
    halves = tensor.view(-1, 2, dimension // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def rotary_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """Return the divisor per RoPE frequency (Llama 3.1); `None` for other types."""
    parameters = rotary_parameters(config)
    if parameters.get("rope_type", "default") != "llama3":
        return None
    dimension = head_dimension(config)
    exponents = torch.arange(0, dimension, 2, dtype=torch.float64) / dimension
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** exponents
    turns = parameters["original_max_position_embeddings"] / wavelengths
    low = parameters["low_freq_factor"]
    smooth = ((turns - low) / (parameters["high_freq_factor"] - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / parameters["factor"] + smooth)).float()

"""Weights of a loaded model in the names, shapes and order of rows that llama.cpp reads."""

import math
from collections.abc import Iterator

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...errors import FFPError
from .architectures import Architecture, LayerSizes


LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MODEL_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm"}
QUERY_KEY_VALUE = ("attn_q", "attn_k", "attn_v")


def head_dimension(config: PretrainedConfig) -> int:
    """Features of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_sizes(model: PreTrainedModel) -> list[LayerSizes]:
    """Sizes of all layers, from the shapes of their weights."""
    dimension = head_dimension(model.config)
    return [
        LayerSizes(
            layer.self_attn.q_proj.out_features // dimension,
            layer.self_attn.k_proj.out_features // dimension,
            layer.mlp.gate_proj.out_features,
        )
        for layer in model.base_model.layers
    ]


def tensors(
    model: PreTrainedModel, architecture: Architecture, padded: LayerSizes | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors under their GGUF names, float32.

    Args:
        model: A loaded model.
        architecture: What to write it as.
        padded: Sizes to pad every layer to with rows and columns of zeros, which change nothing.
    """
    base = model.base_model
    for name, target in MODEL_NAMES.items():
        yield f"{target}.weight", base.get_submodule(name).weight.float()
    if not model.config.tie_word_embeddings:
        yield "output.weight", model.get_output_embeddings().weight.float()
    factors = rotary_factors(model.config)
    if factors is not None:
        yield "rope_freqs.weight", factors
    dimension = head_dimension(model.config)
    for index, layer in enumerate(base.layers):
        found = dict(_layer(layer, dimension, padded))
        if architecture.interleaved:
            for name in found:
                if name.startswith(("attn_q.", "attn_k.")):
                    found[name] = interleave(found[name], dimension)
        if architecture.fused:
            found["attn_qkv.weight"] = torch.cat([found.pop(f"{name}.weight") for name in QUERY_KEY_VALUE])
        for name, tensor in found.items():
            yield f"blk.{index}.{name}", tensor


def _layer(layer: torch.nn.Module, dimension: int, padded: LayerSizes | None) -> Iterator[tuple[str, torch.Tensor]]:
    rows: dict[str, int] = {}
    if padded is not None:
        rows = {"attn_q": padded.heads * dimension, "ffn_gate": padded.width, "ffn_up": padded.width}
        rows |= {"attn_k": padded.kv_heads * dimension, "attn_v": padded.kv_heads * dimension}
    columns = {"attn_output": rows["attn_q"], "ffn_down": rows["ffn_up"]} if rows else {}
    for name, parameter in layer.named_parameters():
        module, _, kind = name.rpartition(".")
        target, tensor = LAYER_NAMES[module], parameter.float()
        if target in rows:
            tensor = _grown(tensor, 0, rows[target])
        elif target in columns and kind == "weight":
            tensor = _grown(tensor, 1, columns[target])
        yield f"{target}.{kind}", tensor


def _grown(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    missing = list(tensor.shape)
    missing[dim] = size - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim)


def interleave(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Rows of every head from halves to pairs: row `i` of the first half goes beside row `i` of the second."""
    halves = tensor.view(-1, 2, dimension // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def rotary_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """What every frequency of the rotary embedding is divided by, if that differs by frequency (Llama 3.1).

    Raises:
        FFPError: If the embedding is scaled in a way that isn't exported.
    """
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "linear"):
        return None
    if kind != "llama3":
        raise FFPError(f"rotary embeddings of type {kind!r} aren't exported; default, linear and llama3 are")
    dimension = head_dimension(config)
    exponents = torch.arange(0, dimension, 2, dtype=torch.float64) / dimension
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** exponents
    turns = parameters["original_max_position_embeddings"] / wavelengths
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / parameters["factor"] + smooth)).float()

"""Chooses the architecture of llama.cpp for a model.

Most architectures of llama.cpp have one size for all layers. Two that fit our models have a size per layer in both
their loader and their graph: `deci` (for Llamas pruned by NVIDIA) and `openelm` (which normalises queries and
keys as Qwen3 does, and always ties its embeddings).
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from ...errors import FFPError


@dataclass(frozen=True)
class Architecture:
    """Layout of a model in llama.cpp.

    Attributes:
        name: `general.architecture`.
        interleaved: Whether the rotary embedding rotates neighbouring rows of a head instead of its halves, so that
            rows of query and key are permuted.
        fused: Whether query, key and value are one tensor.
        all_heads: Whether the query must be as wide as the hidden size, so that no head may be removed.
    """

    name: str
    interleaved: bool = False
    fused: bool = False
    all_heads: bool = False


# Rotary embeddings that can be written.
ROTARY_TYPES = ("default", "linear", "llama3")
# Architectures with one size for all layers.
UNIFORM = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", all_heads=True),
    "qwen3": Architecture("qwen3"),
}
# Architectures with a size per layer. `deci` adds biases to query, key and value if there are any, as for Qwen2.
PER_LAYER = {
    "llama": Architecture("deci", interleaved=True),
    "mistral": Architecture("deci", interleaved=True),
    "qwen2": Architecture("deci", interleaved=True),
    "qwen3": Architecture("openelm", fused=True),
}


@dataclass(frozen=True)
class LayerSizes:
    """Number of query heads and KV heads, and FFN width, of a layer."""

    heads: int
    kv_heads: int
    width: int


def padded_size(config: PretrainedConfig, sizes: list[LayerSizes]) -> LayerSizes:
    """The size to pad all layers to for an architecture with one size for all layers."""
    width, kv_heads = max(size.width for size in sizes), max(size.kv_heads for size in sizes)
    # Layers may differ in the number of query heads per KV head too.
    heads = kv_heads * max(size.heads // size.kv_heads for size in sizes)
    if UNIFORM[config.model_type].all_heads:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return LayerSizes(heads, kv_heads, width)


def check_exportable(config: PretrainedConfig) -> None:
    """Raises `FFPError` if models with this config can't be exported at any size."""
    model_type = config.model_type
    if model_type not in UNIFORM:
        raise FFPError(
            f"llama.cpp has no architecture that this exporter writes for model type {model_type!r}; it exports "
            f"{', '.join(UNIFORM)}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise FFPError("this model is quantised; export the one that it was quantised from")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise FFPError(f"llama.cpp's {model_type} has a SiLU in its FFN, this model a {config.hidden_act}")
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ROTARY_TYPES:
        raise FFPError(f"rotary embeddings of type {kind!r} aren't exported; {', '.join(ROTARY_TYPES)} are")


def choose_architecture(config: PretrainedConfig, sizes: list[LayerSizes]) -> Architecture:
    """The architecture for a model with these layer sizes.

    Raises:
        FFPError: If llama.cpp has none; the message says why and what would work.
    """
    model_type = config.model_type
    uniform = UNIFORM[model_type]
    if len(set(sizes)) == 1 and (not uniform.all_heads or sizes[0].heads == config.num_attention_heads):
        return uniform
    pad = "--pad-uniform (pad_uniform=True) writes all layers as wide as the widest, which works everywhere"
    if model_type == "qwen3" and not config.tie_word_embeddings:
        raise FFPError(
            "llama.cpp runs a Qwen3 with layers of different sizes only if its input and output embeddings are tied, "
            f"and this model's are not; {pad}"
        )
    architecture = PER_LAYER[model_type]
    for option, part in (("attention_bias", "attention output"), ("mlp_bias", "FFN")):
        if getattr(config, option, False):
            raise FFPError(
                f"llama.cpp's {architecture.name} architecture has no bias on the {part}, this model has; {pad}"
            )
    return architecture

"""Which architecture of llama.cpp runs a model, and why none does where that is so.

Most architectures of llama.cpp read one size for all layers. Two read a size for every layer in both their loader and
their graph and fit models of ours: `deci` (made for Llamas that NVIDIA pruned) and `openelm` (whose queries and keys
are normed as Qwen3's are, and whose embeddings are always tied).
"""

from dataclasses import dataclass

from transformers import PretrainedConfig

from ...errors import FFPError


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp wants a model.

    Attributes:
        name: `general.architecture`.
        interleaved: Rotary embedding turns neighbouring rows of a head, not its halves: rows of query and key are
            permuted.
        fused: Query, key and value are one tensor.
        all_heads: It takes the query to be as wide as the hidden size, so no head may be missing.
    """

    name: str
    interleaved: bool = False
    fused: bool = False
    all_heads: bool = False


# One size for all layers.
UNIFORM = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", all_heads=True),
    "qwen3": Architecture("qwen3"),
}
# A size for every layer. `deci` adds biases to query, key and value where there are any, as Qwen2 needs it.
PER_LAYER = {
    "llama": Architecture("deci", interleaved=True),
    "mistral": Architecture("deci", interleaved=True),
    "qwen2": Architecture("deci", interleaved=True),
    "qwen3": Architecture("openelm", fused=True),
}


@dataclass(frozen=True)
class LayerSizes:
    """Query heads, KV heads and FFN width of one layer."""

    heads: int
    kv_heads: int
    width: int


def padded_size(config: PretrainedConfig, sizes: list[LayerSizes]) -> LayerSizes:
    """What every layer can be padded to for the architecture that reads one size for all."""
    heads, kv_heads, width = (max(getattr(size, name) for size in sizes) for name in ("heads", "kv_heads", "width"))
    if UNIFORM[config.model_type].all_heads:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return LayerSizes(heads, kv_heads, width)


def check_exportable(config: PretrainedConfig) -> None:
    """Raises `FFPError` if no model of this kind can be exported, whatever its sizes."""
    model_type = config.model_type
    if model_type not in UNIFORM:
        raise FFPError(
            f"llama.cpp has no architecture that this exporter writes for model type {model_type!r}; it exports "
            f"{', '.join(UNIFORM)}"
        )
    if getattr(config, "hidden_act", "silu") != "silu":
        raise FFPError(f"llama.cpp's {model_type} has a SiLU in its FFN, this model a {config.hidden_act}")


def choose_architecture(config: PretrainedConfig, sizes: list[LayerSizes]) -> Architecture:
    """The architecture that runs a model with these layers.

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
    if PER_LAYER[model_type].name == "deci":
        for option, part in (("attention_bias", "attention output"), ("mlp_bias", "FFN")):
            if getattr(config, option, False):
                raise FFPError(f"llama.cpp's deci architecture has no bias on the {part}, this model has; {pad}")
    return PER_LAYER[model_type]

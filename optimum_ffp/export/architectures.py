"""Choice of the llama.cpp architecture for a model.

Most architectures of llama.cpp have one size for all layers. Two suitable ones have sizes per layer in both loader and
graph: `deci` (for Llamas pruned by NVIDIA) and `openelm` (which normalizes queries and keys like Qwen3, and always
ties its embeddings).
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from ..errors import FFPError
from ..modeling.checks import check_unquantized
from ..modeling.families import head_dimension


@dataclass(frozen=True)
class Architecture:
    """Layout of a model in llama.cpp.

    Attributes:
        name: `general.architecture`.
        interleaved: Whether the rotary embedding rotates adjacent rows of a head instead of its halves, so that query
            and key rows are permuted.
        fused: Whether query, key and value are one tensor.
        no_heads: Whether a layer may have no heads, and then no attention; otherwise it keeps a head of zeros.
        all_heads: Whether the query must be as wide as the hidden size, so that no head can be removed.
        norm_offset: Value to add to the weights of norms: transformers adds one to those of Gemma, llama.cpp doesn't.
        activation: Activation function of the FFN, by its name in transformers.
        sliding: Whether sliding windows are supported; otherwise the context is limited to the window.
    """

    name: str
    interleaved: bool = False
    fused: bool = False
    no_heads: bool = False
    all_heads: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    sliding: bool = False


# Gemma 3 in llama.cpp: period of layers with full attention, and RoPE base of the others.
GEMMA3_PERIOD, GEMMA3_SLIDING_BASE = 6, 10_000.0


def _fixed_in_gemma3(config: PretrainedConfig) -> tuple[tuple[str, Any, Any], ...]:
    """Return names, values and expected values of what llama.cpp hard-codes."""
    full = [(index + 1) % GEMMA3_PERIOD == 0 for index in range(config.num_hidden_layers)]
    sliding = config.rope_parameters.get("sliding_attention", {})
    return (
        ("layers with full attention", [kind == "full_attention" for kind in config.layer_types], full),
        ("query_pre_attn_scalar", config.query_pre_attn_scalar, config.head_dim),
        ("rotary base of sliding layers", sliding.get("rope_theta", GEMMA3_SLIDING_BASE), GEMMA3_SLIDING_BASE),
        ("final_logit_softcapping", config.final_logit_softcapping, None),
        ("use_bidirectional_attention", bool(config.use_bidirectional_attention), False),
        ("attention_bias", config.attention_bias, False),
    )


# Supported types of rotary embeddings.
ROTARY_TYPES = ("default", "linear", "llama3")
# Architectures with one size for all layers.
UNIFORM = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", all_heads=True),
    "qwen3": Architecture("qwen3"),
    "gemma3_text": Architecture("gemma3", norm_offset=1.0, activation="gelu_pytorch_tanh", sliding=True),
}
# Architectures with sizes per layer. `deci` supports query, key and value biases, as in Qwen2.
PER_LAYER = {
    "llama": Architecture("deci", interleaved=True, no_heads=True),
    "mistral": Architecture("deci", interleaved=True, no_heads=True),
    "qwen2": Architecture("deci", interleaved=True, no_heads=True),
    "qwen3": Architecture("openelm", fused=True),
}


@dataclass(frozen=True)
class LayerSizes:
    """Number of query heads and KV heads, and FFN width, of a layer; 0 if it has none."""

    heads: int
    kv_heads: int
    width: int


def padded_size(config: PretrainedConfig, sizes: list[LayerSizes]) -> LayerSizes:
    """Return the size to pad all layers to for an architecture with one size for all layers."""
    width = max(size.width for size in sizes)
    kv_heads = max(size.kv_heads for size in sizes)
    # Layers may differ in the number of query heads per KV head too.
    heads = kv_heads * max(size.heads // size.kv_heads for size in sizes if size.kv_heads)
    if UNIFORM[config.model_type].all_heads:
        # The smallest number of query heads per KV head that divides the number of heads.
        smallest, heads = heads // kv_heads, all_heads(config)
        group = next(size for size in range(smallest, heads + 1) if heads % size == 0)
        kv_heads = heads // group
    return LayerSizes(heads=heads, kv_heads=kv_heads, width=width)


def all_heads(config: PretrainedConfig) -> int:
    """Return the number of query heads whose total width is the hidden size."""
    return config.hidden_size // head_dimension(config)


def check_exportable(config: PretrainedConfig) -> None:
    """Raise `FFPError` if models with this config can't be exported at any size."""
    model_type = config.model_type
    if model_type not in UNIFORM:
        raise FFPError(
            f"model type {model_type!r} can't be exported; supported are {', '.join(UNIFORM)}. A pruned mixture of "
            "experts is a plain checkpoint: use llama.cpp's convert_hf_to_gguf.py"
        )
    check_unquantized("this model", config)
    architecture = UNIFORM[model_type]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation:
        raise FFPError(f"llama.cpp's {model_type} uses {architecture.activation} in its FFN, this model {activation}")
    kind = rotary_parameters(config).get("rope_type", "default")
    if kind not in ROTARY_TYPES:
        raise FFPError(f"rotary embeddings of type {kind!r} can't be exported; choose from {', '.join(ROTARY_TYPES)}")
    for name, value, expected in _fixed_in_gemma3(config) if model_type == "gemma3_text" else ():
        if value != expected:
            raise FFPError(f"llama.cpp's {architecture.name} needs {name} {expected!r}, but this model has {value!r}")


def rotary_parameters(config: PretrainedConfig) -> dict[str, Any]:
    """Return the RoPE parameters, those of full attention if sliding layers have others."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def choose_architecture(config: PretrainedConfig, sizes: list[LayerSizes]) -> Architecture:
    """Return the architecture for a model with these layer sizes, or raise `FFPError` if llama.cpp has none."""
    model_type = config.model_type
    uniform = UNIFORM[model_type]
    if len(set(sizes)) == 1 and (not uniform.all_heads or sizes[0].heads == all_heads(config)):
        return uniform
    pad = "--pad-uniform (pad_uniform=True) pads all layers to the size of the largest, which always works"
    if model_type == "qwen3" and not config.tie_word_embeddings:
        raise FFPError(
            "llama.cpp supports Qwen3 with layers of different sizes only with tied embeddings, which this model "
            f"doesn't have; {pad}"
        )
    if model_type not in PER_LAYER:
        raise FFPError(
            f"llama.cpp only supports {model_type} with layers of one size; {pad}, and ffp prune --method homogeneous "
            "gives all layers the same size"
        )
    architecture = PER_LAYER[model_type]
    for option, part in (("attention_bias", "attention output"), ("mlp_bias", "FFN")):
        if getattr(config, option, False):
            raise FFPError(f"llama.cpp's {architecture.name} doesn't support this model's {part} bias; {pad}")
    return architecture

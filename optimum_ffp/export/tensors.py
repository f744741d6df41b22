"""Weights with the names, shapes and row order of llama.cpp."""

from collections.abc import Iterator

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from ..modeling.families import decoder_layers, head_dimension
from ..utils.lm_head import embedding_of, head_of
from .architectures import Architecture, LayerSizes, rotary_parameters


QUERY, KEY, VALUE, QUERY_KEY_VALUE, OUTPUT = (f"self_attn.{name}_proj" for name in ("q", "k", "v", "qkv", "o"))
ATTENTION = "self_attn.", "input_layernorm"
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def layer_sizes(model: PreTrainedModel, architecture: Architecture | None = None) -> list[LayerSizes]:
    """Return the sizes of all layers, from the shapes of the weights: in the model, or in an architecture's file."""
    dimension, sizes = head_dimension(model.config), []
    for layer in _layers(model, architecture):
        heads, kv_heads, width = (len(layer.get(f"{name}.weight", ())) for name in (QUERY, KEY, GATE))
        sizes.append(LayerSizes(heads // dimension, kv_heads // dimension, width))
    return sizes


def tensors(
    model: PreTrainedModel, architecture: Architecture, padded: LayerSizes | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of an architecture with their GGUF names, float32.

    Every layer is padded to a size with zeros, which doesn't change the output, unless it is `None`.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    base, dimension, rotary = model.base_model, head_dimension(model.config), rotary_parameters(model.config)
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(numbers[architecture.name], len(decoder_layers(model)))
    yield f"{names['model.embed_tokens']}.weight", embedding_of(model).weight.float()
    yield f"{names['model.norm']}.weight", base.get_parameter("norm.weight").float() + architecture.norm_offset
    if not model.config.tie_word_embeddings:
        yield f"{names['lm_head']}.weight", head_of(model).weight.float()
    if rotary.get("rope_type") == "llama3":
        # Divisors of the frequencies.
        plain = 1.0 / rotary["rope_theta"] ** (torch.arange(0, dimension, 2, dtype=torch.float) / dimension)
        yield "rope_freqs.weight", plain / base.get_buffer("rotary_emb.inv_freq").cpu()
    for index, parameters in enumerate(_layers(model, architecture)):
        weights = {name: parameter.float() for name, parameter in parameters.items()}
        if padded is not None:
            _pad(weights, dimension, padded)
        if architecture.interleaved:
            # From halves to pairs: row `i` of the second half of a head follows row `i` of the first.
            for name in (name for name in weights if name.startswith((QUERY, KEY))):
                halves = weights[name].unflatten(0, (-1, 2, dimension // 2))
                weights[name] = halves.transpose(1, 2).flatten(0, 2)
        if architecture.fused:
            parts = [weights.pop(f"{module}.weight") for module in (QUERY, KEY, VALUE)]
            weights[f"{QUERY_KEY_VALUE}.weight"] = torch.cat(parts)
        for name, tensor in weights.items():
            module, _, kind = name.rpartition(".")
            if module.endswith("norm"):
                tensor = tensor + architecture.norm_offset
            yield f"{names[f'model.layers.{index}.{module}']}.{kind}", tensor


def _layers(model: PreTrainedModel, architecture: Architecture | None) -> list[dict[str, torch.Tensor]]:
    """Return the parameters of every layer, with a head or channel of zeros for what an architecture can't lack."""
    dimension = head_dimension(model.config)
    layers: list[dict[str, torch.Tensor]] = [dict(layer.named_parameters()) for layer in decoder_layers(model)]
    if architecture is None:
        return layers
    shapes = {name: parameter.shape for parameters in layers for name, parameter in parameters.items()}
    rows = {QUERY: dimension, KEY: dimension, VALUE: dimension, GATE: 1, UP: 1}
    columns = {OUTPUT: dimension, DOWN: 1}
    for parameters in layers:
        for name, (first, *others) in shapes.items():
            module = name.rpartition(".")[0]
            if name not in parameters and not (architecture.no_heads and module.startswith(ATTENTION)):
                shape = rows.get(module, first), *(columns.get(module, size) for size in others)
                parameters[name] = torch.zeros(shape)
    return layers


def _pad(weights: dict[str, torch.Tensor], dimension: int, padded: LayerSizes) -> None:
    """Pad the parameters of a layer with zeros, in place."""
    # Query heads are grouped by KV head.
    kv_heads = len(weights[f"{KEY}.weight"]) // dimension
    queries = kv_heads, padded.kv_heads, padded.heads // padded.kv_heads * dimension
    keys, channels = (1, 1, padded.kv_heads * dimension), (1, 1, padded.width)
    # By projection: number of sections before and after padding, and padded size of a section.
    rows = {QUERY: queries, KEY: keys, VALUE: keys, GATE: channels, UP: channels}
    columns = {OUTPUT: queries, DOWN: channels}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module in rows:
            weights[name] = _pad_sections(tensor, 0, *rows[module])
        elif module in columns and kind == "weight":
            weights[name] = _pad_sections(tensor, 1, *columns[module])


def _pad_sections(tensor: torch.Tensor, dim: int, before: int, after: int, size: int) -> torch.Tensor:
    sections = tensor.unflatten(dim, (before, -1))
    # Sizes to add before and after, from the last dimension to `dim`.
    missing = [0, size - sections.shape[dim + 1], 0, after - before]
    return pad(sections, [0, 0] * (tensor.dim() - dim - 1) + missing).flatten(dim, dim + 1)

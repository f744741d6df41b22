"""Writing of GGUF files."""

import os
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FFPError
from ..modeling.checks import check_usable
from ..modeling.families import head_dimension
from ..modeling.gguf_file import check_gguf_installed
from ..utils.folders import atomic_file, expand
from ..utils.lm_head import embedding_of
from .architectures import (
    Architecture,
    LayerSizes,
    check_exportable,
    choose_architecture,
    padded_size,
    rotary_parameters,
)
from .tensors import layer_sizes, tensors
from .tokenizer import read_tokenizer, write_tokenizer


def plan_export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pad_uniform: bool = False
) -> tuple[Architecture, LayerSizes | None]:
    """Return the architecture for a model, and the size to pad its layers to, if any.

    Arguments are as for `export_gguf`; the model may be on the meta device. Raises `FFPError` if llama.cpp doesn't
    support the model or its tokenizer.
    """
    check_exportable(model.config)
    read_tokenizer(tokenizer)
    check_usable(model, tokenizer, model.config._name_or_path or "the model")
    sizes = layer_sizes(model)
    padded = padded_size(model.config, sizes) if pad_uniform else None
    return choose_architecture(model.config, [padded] if padded else sizes), padded


@torch.no_grad()
def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | os.PathLike,
    output_type: str = "f16",
    pad_uniform: bool = False,
) -> Architecture:
    """Write a dense or pruned model as a GGUF file.

    Matrices are written in the output type, vectors in float32. As in the tools of llama.cpp, matrices whose rows are
    not a multiple of the block size 32 are float16, and embeddings are `q8_0` with `q4_0`.

    Args:
        model: A causal LM, dense or pruned.
        tokenizer: Tokenizer of the model.
        path: File to write, atomically.
        output_type: `"f32"`, `"f16"`, `"bf16"`, `"q8_0"` or `"q4_0"`.
        pad_uniform: Whether to pad all layers with zeros to the size of the largest, for the standard architecture.

    Returns:
        Architecture of the file.

    Raises:
        FFPError: As `plan_export`, or if the file can't be written or the `gguf` package is missing.
    """
    check_gguf_installed()
    architecture, padded = plan_export(model, tokenizer, pad_uniform)
    import gguf

    path = expand(path)
    sizes = [padded or one for one in layer_sizes(model, architecture)]
    try:
        with atomic_file(path) as partial:
            writer = gguf.GGUFWriter(partial, architecture.name)
            write_tokenizer(writer, tokenizer, embedding_of(model).num_embeddings)
            _write_sizes(writer, model.config, architecture, sizes)
            writer.add_name(Path(model.config._name_or_path).name or "model")
            file_type = f"{'ALL' if output_type == 'f32' else 'MOSTLY'}_{output_type.upper()}"
            writer.add_file_type(int(gguf.LlamaFileType[file_type]))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, tensor in tensors(model, architecture, padded):
                kind = _tensor_type(gguf.GGMLQuantizationType, name, tensor, output_type)
                data = gguf.quants.quantize(tensor.cpu().contiguous().numpy(), kind)
                writer.add_tensor(name, data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:
        raise FFPError(f"{path} can't be written: {error}; no partial file was left") from None
    return architecture


def _tensor_type(types, name: str, tensor: torch.Tensor, output_type: str):
    if tensor.dim() == 1:
        return types.F32
    if output_type in ("q8_0", "q4_0"):
        if tensor.shape[-1] % 32:
            return types.F16
        if name in ("token_embd.weight", "output.weight"):
            return types.Q8_0
    return types[output_type.upper()]


def _write_sizes(writer, config: PretrainedConfig, architecture: Architecture, sizes: list[LayerSizes]) -> None:
    def per_layer(name: str) -> int | list[int]:
        values = [getattr(size, name) for size in sizes]
        return values[0] if len(set(sizes)) == 1 else values

    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    if window and architecture.sliding:
        writer.add_sliding_window(window)
    elif window:
        # Attention is full within the sliding window, so the model is exact up to that length.
        context = min(context, window)
    rotary, dimension = rotary_parameters(config), head_dimension(config)
    writer.add_block_count(len(sizes))
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(per_layer("width"))
    writer.add_head_count(per_layer("heads"))
    writer.add_head_count_kv(per_layer("kv_heads"))
    # By default, llama.cpp derives them from the number of heads of the first layer.
    writer.add_key_length(dimension)
    writer.add_value_length(dimension)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(dimension)
    writer.add_rope_freq_base(rotary["rope_theta"])
    if rotary.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])

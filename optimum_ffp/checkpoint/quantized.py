"""Quantized checkpoints of pruned models in the compressed-tensors format, by llm-compressor."""

import math
import os
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from ..data import Windows
from ..errors import FFPError, convert_errors, one_line
from ..hub.naming import without_folders
from ..hub.record import require_record
from ..modeling.families import decoder_layers
from ..utils.record import Record
from .recovered import copy_files
from .saving import FILE_SIZE, write_checkpoint


# Inputs of a projection that may share a scale in 4 bits.
GROUP_SIZES = (128, 64, 32)


def find_group_size(model: PreTrainedModel, scheme: str) -> int | None:
    """Return how many inputs share a scale: for `"w4a16"` the most that divide those of every projection.

    It is `None` for `"w8a8"`, which has a scale per output. The model may be on the meta device. Raises `FFPError` if
    none of `GROUP_SIZES` divides them, or not all projections are `nn.Linear` layers.
    """
    inputs = {module.in_features for module in model.base_model.modules() if isinstance(module, nn.Linear)}
    # GPT-2's Conv1D and the experts of a mixture, which llm-compressor splits and transformers doesn't load then.
    others = (module for module in decoder_layers(model).modules() if not isinstance(module, nn.Linear))
    if any(weight.ndim > 1 for module in others for weight in module.parameters(recurse=False)):
        raise FFPError(
            f"some projections of {model.config.model_type} aren't Linear layers and can't be quantized; for mixtures "
            "of experts, use llama.cpp's convert_hf_to_gguf.py"
        )
    if scheme == "w8a8":
        return None
    size = GROUP_SIZES[-1]
    for larger in GROUP_SIZES:
        if math.gcd(*inputs) % larger == 0:
            return larger
    found = ", ".join(str(width) for width in sorted(inputs) if width % size)
    raise FFPError(
        f"{scheme} needs Linear layers with multiples of {size} inputs, found {found}; prune with --multiple-of "
        f"{size}, or choose w8a8"
    )


def save_quantized(
    model: PreTrainedModel,
    source: Path,
    directory: str | os.PathLike,
    scheme: str,
    group_size: int | None,
    windows: Windows | None,
    **options,
) -> Path:
    """Quantize all projections of a pruned model but the head, in place, and write it as `write_checkpoint` does.

    All other files of `source`, the folder of its checkpoint, are copied. Weights are rounded by GPTQ on calibration
    windows, or to the nearest without any. Raises `FFPError` if llm-compressor fails, or the folder can't be written.
    """
    from compressed_tensors.quantization import preset_name_to_scheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    quantization = preset_name_to_scheme(scheme, ["Linear"])
    if quantization.weights is not None:
        quantization.weights.group_size = group_size
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    modifier, data = QuantizationModifier, {}
    if windows:
        modifier, data = GPTQModifier, {"dataset": Dataset.from_dict({"input_ids": windows.tokens.tolist()})}
        data |= {"num_calibration_samples": len(windows), "max_seq_length": windows.length}
    with convert_errors(lambda error: f"llm-compressor can't quantize the model: {one_line(error)}"):
        oneshot(model=model, recipe=modifier(config_groups={"projections": quantization}, ignore=[head]), **data)
    record = {"scheme": scheme, "group_size": group_size, "windows": windows and windows.describe()}
    record |= {"llmcompressor": version("llmcompressor")}
    return write_checkpoint(partial(_write, model, source, record), directory, **options)


def _write(model: PreTrainedModel, source: Path, quantization: dict[str, Any], folder: Path) -> Record:
    # That of the source, which is copied, may have settings that transformers refuses to save.
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder, max_shard_size=FILE_SIZE)
    record = require_record(source)
    copy_files(source, record, folder, {"config.json"})
    return replace(record, quantization=without_folders(quantization))

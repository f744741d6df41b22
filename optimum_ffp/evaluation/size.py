"""Size of a model: parameters, bytes of weights on disk, bytes of KV cache per token."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.utils.hub import cached_file

from ..modeling.families import FAMILIES, MULTIMODAL, decoder_layers
from ..utils.folders import expand


# Transformers reads the first of these that exists in a folder.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "*.safetensors")


def projection_parameters(model: PreTrainedModel) -> int | None:
    """Return the number of parameters that sparsity refers to: of the decoder blocks' projections, or of experts.

    Biases are included. It is `None` if the model's family has no record.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return None
    names = family.pruned_modules
    modules = (module for layer in decoder_layers(model) for module in layer.named_modules())
    pruned = (module for name, module in modules if name in names)
    return sum(weight.numel() for module in pruned for weight in module.parameters())


@torch.no_grad()
def kv_cache_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of KV cache per token of context, until a sliding window is full.

    This is 2 · KV heads · head dimension · bytes of the dtype, summed over the layers. It is measured on the cache of
    a forward pass, so that it is correct for heterogeneous layers and any kind of attention.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    # Recurrent models have another name for it.
    caches = [value for value in model(token, use_cache=True).values() if isinstance(value, Cache)]
    tensors = [getattr(layer, name, None) for cache in caches for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def weight_bytes(model: PreTrainedModel, model_id: str | os.PathLike, **hub: Any) -> int:
    """Return the bytes of the weight files of a model, or of its weights for the language model of a larger model.

    `model_id` is a `.gguf` file, a folder, or the id of a model in the cache of the Hub, with its `revision`, `token`.
    """
    path = expand(model_id)
    if path.suffix == ".gguf":
        return path.stat().st_size
    if not path.is_dir() and (file := cached_file(os.fspath(model_id), "config.json", **hub)):
        path = Path(file).parent
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") in MULTIMODAL:
        return model.get_memory_footprint(return_buffers=False)
    files = next((matches for pattern in WEIGHT_FILES if (matches := list(path.glob(pattern)))), [])
    return sum(file.stat().st_size for file in files)

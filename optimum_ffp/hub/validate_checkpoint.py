"""Validation of a checkpoint before it is loaded: its JSON files may only name files of its folder, and no code."""

import json
import os
import re
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import transformers
from safetensors import SafetensorError, safe_open
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import cached_file

from ..errors import FFPError


SINGLE_FILE, INDEX_SUFFIX = "model.safetensors", ".safetensors.index.json"
LAYER_COUNTS = {"num_hidden_layers", "n_layer"}
FFN_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
SIZE_NAMES = LAYER_COUNTS | {
    *("hidden_size", "n_embd", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads"),
    *(*FFN_WIDTHS, "word_embed_proj_dim"),
}
# Sizes and layers that no model has more of.
MOST_SIZE, MOST_LAYERS = 2**22, 2**12
# Masks, frequencies and positions that earlier releases of transformers saved as buffers.
SAVED_BUFFERS = (r"(attn|attention)\.(masked_)?bias$", r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$")
# Prefix that torch.compile adds to the names of weights.
COMPILED = "_orig_mod."
# Missing files, gated repositories and connection errors are reported when the model is loaded.
QUIETLY = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def check_checkpoint(source: str | os.PathLike, variant: str | None = None, weights: bool = True, **hub: Any) -> None:
    """Check a checkpoint's JSON files and safetensors headers before it is loaded.

    Args:
        source: Hub id or folder.
        variant: Variant of the weights, as in `from_pretrained`.
        weights: Whether to check the headers too, for which the weights are downloaded.
        hub: Hub options such as `revision` and `token`.

    Raises:
        FFPError: If the checkpoint names a file outside its folder, weights that aren't safetensors, or an attention
            kernel of another repository; if its weights are integers or have names of a compiled model; if its sizes
            contradict the shapes of its weights; or if it is an adapter, which names the repository of its base.
    """
    if _read(source, "adapter_config.json", hub) is not None:
        raise FFPError(
            f"{source} holds an adapter; merge it into its base first (peft: merge_and_unload) and save that"
        )
    config = _read(source, "config.json", hub) or {}
    for key, value in config.items():
        # Transformers downloads and runs such kernels.
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise FFPError(
                f"config.json of {source} asks for the code of another repository, {key} {value!r}; remove the entry, "
                f"or ask for it yourself when you load"
            )
    named = config.get("transformers_weights")
    index = f"model{INDEX_SUFFIX if variant is None else INDEX_SUFFIX.replace('.json', f'.{variant}.json')}"
    if named is not None:
        _check_name(source, "config.json", named, (".safetensors", INDEX_SUFFIX))
        index = named if named.endswith(INDEX_SUFFIX) else index
    files = _values(source, index, (_read(source, index, hub) or {}).get("weight_map", {}))
    for name in files:
        _check_name(source, index, name, (".safetensors",))
    # Where there is a single file too, it is read instead.
    usual = files and weights and variant is None and named is None
    if usual and cached_file(os.fspath(source), SINGLE_FILE, **hub, **QUIETLY):
        files = {SINGLE_FILE}
    headers = _read_headers(source, files or {SINGLE_FILE}, hub) if weights else {}
    _check_weights(source, config, headers)
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict) or not all(isinstance(entry, str) for entry in auto_map.values()):
        raise FFPError(
            f"auto_map in config.json of {source} must map every Auto class to a class name, found {auto_map!r}"
        )
    _check_sizes(source, config, [header.shape for header in headers.values()])
    tokenizer = _read(source, "tokenizer_config.json", hub) or {}
    for name in tokenizer.get("fast_tokenizer_files") or []:
        _check_name(source, "tokenizer_config.json", name, (".json",))


def is_ignored(key: str, model_type: str | None) -> bool:
    """Return whether a tensor is not a weight of the causal LM: an old buffer, or a key that its class ignores."""
    patterns = list(SAVED_BUFFERS)
    for names in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        model_class = getattr(transformers, str(names.get(model_type)), None)
        patterns += getattr(model_class, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, key) for pattern in patterns)


class _Header(NamedTuple):
    shape: list[int]
    kind: str


def _read_headers(source: str | os.PathLike, files: set[str], hub: dict[str, Any]) -> dict[str, _Header]:
    """Read shapes and dtypes of all tensors from the headers of the files, without reading tensors."""
    headers = {}
    for name in files:
        path = cached_file(os.fspath(source), name, **hub, **QUIETLY)
        if path is None:
            if name != SINGLE_FILE and os.path.isdir(source):
                raise FFPError(f"{source} has no {name}, which its index of the weights names; download it again")
            continue
        if not os.access(path, os.R_OK):
            raise FFPError(f"{name} of {source} may not be read: change its permissions")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (a file is no dictionary)
                    tensor = file.get_slice(key)
                    headers[key] = _Header(tensor.get_shape(), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            raise FFPError(f"{name} of {source} is not a valid safetensors file: {error}; download it again") from None
    return headers


def _check_weights(source: str | os.PathLike, config: dict[str, Any], headers: dict[str, _Header]) -> None:
    for key, header in headers.items():
        if COMPILED in key:
            raise FFPError(
                f"{source} was saved from a model wrapped by torch.compile: it has a weight {key}; save the "
                "wrapped model, model._orig_mod, with save_pretrained"
            )
        whole_number = header.kind[0] in "IUB" and header.kind != "BF16"
        if whole_number and "quantization_config" not in config and not is_ignored(key, config.get("model_type")):
            raise FFPError(
                f"{source} holds weights of type {header.kind}, such as {key}; those of a model are floating point "
                "numbers: give the model that it was quantised from"
            )


def _check_sizes(source: str | os.PathLike, config: dict[str, Any], shapes: list[list[int]]) -> None:
    """Check that no size in the config exceeds the largest dimension of any tensor, or of any model without them.

    Otherwise transformers would allocate a huge model before it finds that the weights don't match.
    """
    largest, most_layers, known = MOST_SIZE, MOST_LAYERS, "in any model"
    if shapes:
        largest, most_layers = max(max(shape, default=1) for shape in shapes), len(shapes)
        known = "by the shapes of the weights"
    layers = config.get("per_layer_config") or {}
    if not isinstance(layers, dict) or not all(isinstance(values, dict) for values in layers.values()):
        raise FFPError(f"per_layer_config in config.json of {source} must map every layer to an object")
    count = config.get("num_hidden_layers", config.get("n_layer"))
    wrong = [index for index in layers if not (index.isdecimal() and isinstance(count, int) and int(index) < count)]
    if wrong:
        raise FFPError(f"per_layer_config in config.json of {source} names layer {wrong[0]!r}; the model has {count}")
    # No weight has the width of the dense model where every layer has another.
    replaced = {name for name in FFN_WIDTHS if len(layers) == count and all(name in one for one in layers.values())}
    for where, values in (("", config), *((f" of layer {index}", one) for index, one in layers.items())):
        for name in SIZE_NAMES & values.keys():
            limit = most_layers if name in LAYER_COUNTS else largest
            if not where and name in replaced:
                limit = MOST_SIZE
            value = values[name]
            if value is not None and not (type(value) is int and 0 < value <= limit):
                raise FFPError(
                    f"config.json of {source} says {name} {value!r}{where}; {known} it is a whole number from 1 to "
                    f"{limit}"
                )


def _read(source: str | os.PathLike, name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    path = cached_file(os.fspath(source), name, **hub, **QUIETLY)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise FFPError(f"{name} of {source} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise FFPError(f"{name} of {source} must hold a JSON object, found {type(content).__name__}")
    return content


def _values(source: str | os.PathLike, where: str, mapping: Any) -> set[str]:
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise FFPError(f"weight_map in {where} of {source} must map every weight to a file name")
    return set(mapping.values())


def _check_name(source: str | os.PathLike, where: str, name: Any, suffixes: tuple[str, ...]) -> None:
    if not isinstance(name, str) or not name.endswith(suffixes):
        raise FFPError(f"{where} of {source} names the file {name!r}; only {' or '.join(suffixes)} files are read")
    if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name or ":" in name:
        raise FFPError(
            f"{where} of {source} names the file {name!r}, which is outside of the checkpoint; don't trust "
            "this checkpoint: whoever wrote it wants to read other files"
        )

"""Validation of a checkpoint before loading: its JSON files may only reference files in its folder, and no code."""

import os
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils.hub import cached_file

from ..config.fields import read_file
from ..errors import FFPError, one_line


INDEX_SUFFIX = ".safetensors.index.json"
# Missing files, gated repositories and connection errors are reported when the model is loaded.
LENIENT = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def check_reachable(source: str | os.PathLike, **hub: Any) -> None:
    """Raise `FFPError` if a model is neither a folder, nor in the cache, nor on a Hub that answers."""
    # For every file, `cached_file` would try for 20 seconds to reach the Hub.
    name, config = os.fspath(source), str(PurePosixPath(hub.get("subfolder") or "", "config.json"))
    revision, token = hub.get("revision"), hub.get("token")
    try:
        if not os.path.isdir(name) and try_to_load_from_cache(name, config, hub.get("cache_dir"), revision) is None:
            HfApi(token=token).file_exists(name, config, revision=revision)
    except HfHubHTTPError:
        # The Hub answers. Its refusal is reported when the config is read.
        return
    except Exception as error:
        reason = "offline mode is on" if constants.HF_HUB_OFFLINE else one_line(error, token)
        raise FFPError(
            f"there is no folder {name}, and no such model in the cache; it can't be read from the Hub: {reason}"
        ) from None


def check_checkpoint(source: str | os.PathLike, **hub: Any) -> None:
    """Check the files and code that the JSON files of a checkpoint, in a folder or on the Hub, reference.

    Raises:
        FFPError: If the checkpoint references a file outside its folder, weights that aren't safetensors, or an
            attention kernel of another repository, or if it is an adapter, which references its base model.
    """
    check_reachable(source, **hub)
    if _read(source, "adapter_config.json", hub):
        raise FFPError(f"{source} is an adapter; merge it into its base model first (peft: merge_and_unload)")
    config = _read(source, "config.json", hub)
    for key, value in config.items():
        # Transformers downloads and runs such kernels.
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise FFPError(
                f"config.json of {source} requests code of another repository, {key} {value!r}; remove the entry, "
                "or request it yourself when loading"
            )
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict) or not all(isinstance(entry, str) for entry in auto_map.values()):
        raise FFPError(
            f"auto_map in config.json of {source} must map every Auto class to a class name, found {auto_map!r}"
        )
    index, weights_file = f"model{INDEX_SUFFIX}", config.get("transformers_weights")
    if weights_file is not None:
        _check_name(source, "config.json", weights_file, (".safetensors", INDEX_SUFFIX))
        index = weights_file if weights_file.endswith(INDEX_SUFFIX) else index
    weight_map = _read(source, index, hub).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise FFPError(f"weight_map in {index} of {source} must map every weight to a file name")
    for name in weight_map.values():
        _check_name(source, index, name, (".safetensors",))
    for name in _read(source, "tokenizer_config.json", hub).get("fast_tokenizer_files") or []:
        _check_name(source, "tokenizer_config.json", name, (".json",))


def _read(source: str | os.PathLike, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint; empty if there is no such file."""
    path = cached_file(os.fspath(source), name, **hub, **LENIENT)
    return read_file(path) if path else {}


def _check_name(source: str | os.PathLike, where: str, name: Any, suffixes: tuple[str, ...]) -> None:
    if not isinstance(name, str) or not name.endswith(suffixes):
        raise FFPError(
            f"{where} of {source} references the file {name!r}; only {' or '.join(suffixes)} files are read"
        )
    if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name or ":" in name:
        raise FFPError(f"{where} of {source} references the file {name!r} outside the checkpoint; don't trust it")

"""Names of models and datasets for publication: Hub ids unchanged, local paths without folders."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config.texts import TextMix


# Keys of configs and records whose values name models or texts, which may be local paths.
MODEL_KEYS = ("base_model", "policy", "pruned_from", "teacher", "warm_start")
TEXT_KEYS = ("dataset", "eval_dataset")


def is_hub_id(model_id: str) -> bool:
    """Return whether a model's name is a valid Hub id and not an existing local path."""
    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return not model_id.endswith(".gguf") and not Path(model_id).exists()


def short_name(source: str) -> str:
    """Return a model's name without local folders."""
    # Strip the revision of an agent (`id@revision`).
    repo_id = re.sub(r"@[\w.-]+$", "", source)
    if not source or is_hub_id(repo_id) and not Path(source).exists():
        return source
    return Path(os.path.abspath(source)).name or source


def model_name(base: str) -> str:
    """Return a base model's name without its owner."""
    return short_name(base).rpartition("/")[2].removesuffix(".gguf")


def without_folders(value: Any, name: str = "") -> Any:
    """Return a copy of a record, whose `name` is that of its field, with local folders removed at any depth."""
    if isinstance(value, dict):
        return {key: without_folders(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item, name) for item in value]
    if isinstance(value, str) and name in TEXT_KEYS:
        return TextMix.parse(value).published
    return short_name(value) if isinstance(value, str) and name in MODEL_KEYS else value

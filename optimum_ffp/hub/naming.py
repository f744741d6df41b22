"""Names of models and datasets in published files: Hub ids unchanged, local paths without their folders."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config.texts import TextMix


# Keys of configs and records whose values name a model, or the texts of a dataset, and so may be local paths.
PLACES = ("base_model", "teacher", "warm_start")
TEXTS = ("dataset", "eval_dataset")


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
    # Without the folders that "." and ".." stand for.
    return Path(os.path.abspath(source)).name or source


def model_name(base: str) -> str:
    """Return a base model's name without its owner."""
    return short_name(base).rpartition("/")[2].removesuffix(".gguf")


def without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record for publication, with local folders removed from the names at any depth."""

    def published(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return without_folders(value)
        if isinstance(value, list):
            return [published(name, one) for one in value]
        if name in TEXTS and isinstance(value, str):
            return TextMix.parse(value).published
        return short_name(value) if name in PLACES and isinstance(value, str) else value

    return {name: published(name, value) for name, value in record.items()}

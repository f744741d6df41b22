"""What models and datasets are called where others read it: Hub ids as they are, paths without their folders."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


# What names a model or dataset in configs and records, and so may be a path.
PLACES = ("base_model", "dataset", "eval_dataset", "warm_start")


def is_hub_id(model_id: str) -> bool:
    """Whether a model's name can be one of the Hub's, and not that of something local."""
    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return not model_id.endswith(".gguf") and not Path(model_id).exists()


def short_name(source: str) -> str:
    """A model's or dataset's name without the folders of the machine that it was on."""
    # The configuration of a dataset (`id:name`) and the revision of an agent (`id@revision`) are no folders.
    repo_id = re.sub(r"[:@][\w.-]+$", "", source)
    return source if is_hub_id(repo_id) and not Path(source).exists() else Path(source).name or source


def model_name(base: str) -> str:
    """A base model's name without its owner."""
    return short_name(base).rpartition("/")[2].removesuffix(".gguf")


def dataset_name(dataset: str) -> str:
    """What a reader is told of where text comes from."""
    return "text sampled from the model itself" if dataset == "self" else short_name(dataset)


def without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it may be published: the names in it, at any depth, say nothing of the machine's folders."""

    def published(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return without_folders(value)
        return short_name(value) if name in PLACES and isinstance(value, str) else value

    return {name: published(name, value) for name, value in record.items()}

"""The license of a model, from the card of its folder or repository."""

import os
from typing import Any

from huggingface_hub import metadata_load
from transformers.utils.hub import cached_file

from ..utils.folders import expand
from .naming import is_hub_id
from .validate_checkpoint import LENIENT


def read_license(model_id: str | os.PathLike, **hub: Any) -> dict[str, str]:
    """Read the license fields of the card of a model in a folder, a file or on the Hub; empty if it can't be read."""
    published = is_hub_id(os.fspath(model_id))
    try:
        path = cached_file(model_id, "README.md", **hub, **LENIENT) if published else expand(model_id) / "README.md"
        data = (path and metadata_load(path)) or {}
    # Base models without a readable card can be pruned too.
    except Exception:
        return {}
    # For `license: other`, the other two fields are its name and link.
    fields = {name: data.get(name) for name in ("license", "license_name", "license_link")}
    fields = {name: value for name, value in fields.items() if isinstance(value, str) and value}
    if "://" not in fields.get("license_link", "://"):
        # A file next to the card, which the result doesn't include.
        file = fields.pop("license_link").removeprefix("./")
        if published:
            revision = hub.get("revision") or "main"
            fields["license_link"] = f"https://huggingface.co/{model_id}/blob/{revision}/{file}"
    return fields

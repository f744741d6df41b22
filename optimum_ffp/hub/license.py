"""The licence of a model, from the card of its folder or repository."""

import logging
import os
from typing import Any

from huggingface_hub import metadata_load
from transformers.utils import cached_file

from ..utils.folders import expand
from .naming import is_hub_id
from .validate_checkpoint import QUIETLY


logger = logging.getLogger(__name__)
# With `license: other` the other two fields give the licence's name and link.
FIELDS = ("license", "license_name", "license_link")


def read_license(model_id: str | os.PathLike, **hub: Any) -> dict[str, str]:
    """Return the licence fields of a model's card; empty if it has no readable card, with a warning on the Hub.

    Args:
        model_id: Hub id, folder or file of the model.
        hub: `revision`, `token`.
    """
    published = is_hub_id(os.fspath(model_id))
    try:
        path = cached_file(model_id, "README.md", **hub, **QUIETLY) if published else expand(model_id) / "README.md"
        data = metadata_load(path) or {}
    # A base model without a readable card can be pruned all the same.
    except Exception:
        if published:
            logger.warning("%s has no card that can be read, so that the result's names no licence", model_id)
        return {}
    found = {name: value for name in FIELDS if isinstance(value := data.get(name), str) and value}
    link = found.get("license_link", "")
    if link and "://" not in link:
        # A file beside the card, which the result doesn't have.
        del found["license_link"]
        if published:
            at = hub.get("revision") or "main"
            found["license_link"] = f"https://huggingface.co/{model_id}/blob/{at}/{link.removeprefix('./')}"
    return found

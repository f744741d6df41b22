"""Records of pruned models in local folders or on the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..utils.folders import RECORD, expand, read_record


def recorded_start_token(record: Mapping[str, Any]) -> str:
    """Return the option `start_token` of the last recovery in a record, or of the prune.

    Earlier versions never used a start token.
    """
    steps = record, *(recovery.get("options", {}) for recovery in record.get("recovery", []))
    return next((step["start_token"] for step in reversed(steps) if step.get("start_token")), "never")


def recorded_length(record: Mapping[str, Any]) -> int | None:
    """Return the tokens per test window of the last recovery in a record, or of the prune."""
    steps = record.get("provenance", {}), *record.get("recovery", [])
    lengths = [step["perplexity"]["window_length"] for step in steps if "window_length" in step.get("perplexity", {})]
    return lengths[-1] if lengths else None


def prune_record(model_id: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Read the `ffp_config.json` of a pruned model; empty for other models.

    Args:
        model_id: Hub id, folder, or `.gguf` file, which has none.
        hub: `revision`, `token`, `subfolder`.
    """
    path = expand(model_id)
    if path.is_dir():
        return read_record(path / (hub.get("subfolder") or ""))
    if path.suffix == ".gguf":
        return {}
    try:
        file = cached_file(os.fspath(model_id), RECORD, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError):
        return {}
    return read_record(Path(file).parent) if file else {}

"""Records of pruned models in local folders or on the Hub, and their policies."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from ..allocation.policy import PruningPolicy, Unit
from ..errors import FFPError
from ..utils.folders import RECORD, expand, read_record


def recorded_start_token(record: Mapping[str, Any]) -> str:
    """Return the option `start_token` of the last recovery in a record, or of the prune."""
    steps = record, *(recovery["options"] for recovery in record.get("recovery", []))
    return next((step["start_token"] for step in reversed(steps) if step.get("start_token")), "never")


def recorded_length(record: Mapping[str, Any]) -> int | None:
    """Return the tokens per test window of the last recovery in a record, or of the prune."""
    steps = record.get("provenance", {}), *record.get("recovery", [])
    lengths = [step["perplexity"]["window_length"] for step in steps if "window_length" in step.get("perplexity", {})]
    return lengths[-1] if lengths else None


def is_on_hub(provenance: Mapping[str, Any]) -> bool:
    """Return whether the dense model is on the Hub. Records name local models without their folders."""
    return provenance.get("revision") is not None or "/" in provenance.get("base_model", "")


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


def policy_rows(source: str) -> list[dict[str, Any]]:
    """Return the rows of a policy, one per unit, as in `ffp_config.json`.

    Args:
        source: Pruned model in a folder or on the Hub, its `ffp_config.json`, or a JSON file with a list of rows.

    Raises:
        FFPError: If there is no policy, or it is malformed.
    """
    path = expand(source)
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FFPError(f"{source} can't be read as a policy: {error}") from None
        record = record if isinstance(record, dict) else {"policy": {"units": record}}
    else:
        record = prune_record(source) if path.is_dir() else _record_on_hub(source)
    policy = record.get("policy")
    rows = policy.get("units") if isinstance(policy, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        # It may be there the next time.
        _record_on_hub.cache_clear()
        raise FFPError(
            f"there is no policy {source}; pass a pruned folder or its Hub id, or a JSON file with the units of a "
            f"policy as in {RECORD}"
        )
    return rows


@cache
def _record_on_hub(model_id: str) -> dict[str, Any]:
    """Return `prune_record`, cached, since a prune reads it several times and must get the same policy each time."""
    return prune_record(model_id)


def read_policy(source: str, units: Sequence[Unit]) -> PruningPolicy:
    """Return a policy for a model with the given units. Raises `FFPError` like `policy_rows` and `from_dict`."""
    return PruningPolicy.from_dict({"units": policy_rows(source)}, units)

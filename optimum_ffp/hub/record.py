"""Records of pruned models in local folders or on the Hub, and their policies."""

import json
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers.utils.hub import cached_file

from ..allocation.policy import PruningPolicy, Unit, UnitSize
from ..errors import FFPError, convert_errors, named_line
from ..utils.folders import expand
from ..utils.record import RECORD, Record


def prune_record(model_id: str | os.PathLike, **hub: Any) -> Record | None:
    """Read the `ffp_config.json` of a pruned model in a folder or on the Hub; `None` for other models."""
    path = expand(model_id)
    if path.is_dir():
        return Record.read(path / (hub.get("subfolder") or ""))
    if path.suffix == ".gguf":
        return None
    try:
        file = cached_file(os.fspath(model_id), RECORD, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError):
        return None
    return Record.read(file) if file else None


# A prune reads a policy several times, and must get the same one each time.
_record_on_hub = cache(prune_record)


def require_record(model_id: str | os.PathLike, **hub: Any) -> Record:
    """Return `prune_record`. Raises `FFPError` if there is none."""
    if (record := prune_record(model_id, **hub)) is None:
        raise FFPError(f"{model_id} has no valid {RECORD}, or it can't be reached; copy that of the original model")
    return record


def policy_rows(source: str) -> Sequence[UnitSize]:
    """Return the rows of a policy, one per unit, as in `ffp_config.json`.

    The source is a pruned model in a folder or on the Hub, its `ffp_config.json`, or a JSON file with a list of rows.
    Raises `FFPError` if there is no policy, or it is malformed.
    """
    path = expand(source)
    if record := Record.read(path) if path.exists() else _record_on_hub(source):
        return record.policy.units
    if path.is_file():
        with convert_errors(lambda error: f"{source} can't be read as the units of a policy: {named_line(error)}"):
            if rows := [UnitSize.from_dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]:
                return rows
    # It may be there the next time.
    _record_on_hub.cache_clear()
    raise FFPError(
        f"there is no policy {source}; pass a pruned folder or its Hub id, or a JSON file with the units of a policy "
        f"as in {RECORD}"
    )


def read_policy(source: str, units: Sequence[Unit]) -> PruningPolicy:
    """Return a policy for a model with the given units. Raises `FFPError` like `policy_rows` and `from_rows`."""
    return PruningPolicy.from_rows(policy_rows(source), units)

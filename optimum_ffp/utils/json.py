"""Standard JSON, without literals for NaN and infinity."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(record: Any, indent: int | None = None) -> str:
    """Serialize to standard JSON. NaN and infinity become `null`."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def write_json(path: Path, record: Any) -> None:
    """Write indented standard JSON to a file."""
    path.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")


def _finite(record: Any) -> Any:
    if isinstance(record, float) and not math.isfinite(record):
        return None
    if isinstance(record, Mapping):
        return {key: _finite(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_finite(value) for value in record]
    return record

"""Standard JSON of records, which has no literals for NaN and infinity."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


# Only key of an object that encodes a NaN or infinity.
FIGURE = "figure"


def to_json(record: Any, indent: int | None = None) -> str:
    """Return JSON for other programs. NaN and infinity become `null`.

    Args:
        record: Any JSON-serialisable object.
        indent: Number of spaces of indentation; a single line if `None`.
    """
    return json.dumps(_replaced(record, lambda figure: None), indent=indent, allow_nan=False)


def write_json(path: Path, record: Any) -> None:
    """Write JSON for other programs to a file, indented."""
    path.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")


def to_exact_json(record: Any) -> str:
    """Return JSON for `from_exact_json`, which restores NaN and infinity as well."""
    return json.dumps(_replaced(record, lambda figure: {FIGURE: str(figure)}), allow_nan=False)


def from_exact_json(text: str) -> Any:
    """Return the record that `to_exact_json` has encoded."""
    return json.loads(text, object_hook=lambda found: float(found[FIGURE]) if found.keys() == {FIGURE} else found)


def _replaced(record: Any, stand_in: Callable[[float], Any]) -> Any:
    if isinstance(record, float) and not math.isfinite(record):
        return stand_in(record)
    if isinstance(record, Mapping):
        return {key: _replaced(value, stand_in) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_replaced(value, stand_in) for value in record]
    return record

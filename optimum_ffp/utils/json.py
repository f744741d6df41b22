"""Standard JSON, without literals for NaN and infinity."""

import json
from pathlib import Path
from typing import Any


def to_json(record: Any, indent: int | None = None) -> str:
    """Serialize to standard JSON. NaN and infinity become `null`."""
    finite = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return json.dumps(finite, indent=indent)


def write_json(path: Path, record: Any) -> None:
    """Write indented standard JSON to a file."""
    path.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")

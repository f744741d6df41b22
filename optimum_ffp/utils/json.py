"""Records as JSON that every parser reads. It has no word for figures that are not finite."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


# Stands for the only key of an object that is a figure.
FIGURE = "figure"


def to_json(record: Any, indent: int | None = None) -> str:
    """What others will read, as JSON. Figures that are not finite become `null`.

    Args:
        record: Anything that JSON holds.
        indent: Spaces of indentation; all in one line if `None`.
    """
    return json.dumps(_replaced(record, lambda figure: None), indent=indent, allow_nan=False)


def to_exact_json(record: Any) -> str:
    """What this package will read again, as JSON from which `from_exact_json` gives the same, NaN and infinity too."""
    return json.dumps(_replaced(record, lambda figure: {FIGURE: str(figure)}), allow_nan=False)


def from_exact_json(text: str) -> Any:
    """What `to_exact_json` was given."""
    return json.loads(text, object_hook=lambda found: float(found[FIGURE]) if found.keys() == {FIGURE} else found)


def _replaced(record: Any, stand_in: Callable[[float], Any]) -> Any:
    if isinstance(record, float) and not math.isfinite(record):
        return stand_in(record)
    if isinstance(record, Mapping):
        return {key: _replaced(value, stand_in) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_replaced(value, stand_in) for value in record]
    return record

"""Types of the entries of `ffp_config.json`, checked where it is read. Imports nothing heavy."""

import os
from typing import Any

from ..errors import FFPError


NUMBER, OPTIONAL_NUMBER, OPTIONAL_NAME = (int, float), (int, float, type(None)), (str, type(None))
WINDOWS = {"dataset": str, "split": str, "windows": int, "window_length": int, "sha256": dict}
# What measurements of a prune or a recovery have in common. Figures that are not finite are null.
MEASURED = {
    "perplexity": WINDOWS | dict.fromkeys(("dense", "searched", "calibrated", "pruned", "recovered"), OPTIONAL_NUMBER),
    "other_texts": [WINDOWS],
}
# Of a recovery, on held-out windows.
EVALUATION = {"step": int, "tokens": int, "kl": NUMBER, "perplexity": OPTIONAL_NUMBER}
# Types of what is read of a record; an entry may be missing.
TYPES = {
    "schema_version": int,
    "files": [str],
    "dataset": str,
    "base_model": OPTIONAL_NAME,
    "start_token": str,
    "sparsity": OPTIONAL_NUMBER,
    "context": int,
    "sequences": int,
    "policy": {
        "sparsity": NUMBER,
        "units": [{"layer": int, "unit": str, "items": int, "kept": int, "retention": NUMBER}],
    },
    "search": {
        "method": str,
        "calibrated_on": WINDOWS,
        "perplexity": WINDOWS,
        "warm_start": OPTIONAL_NAME,
        "note": OPTIONAL_NAME,
        "budget": [{"option": str, "asked": NUMBER, "dense": NUMBER, "reached": NUMBER, "measured": NUMBER}],
    },
    "provenance": {
        "base_model": str,
        "revision": OPTIONAL_NAME,
        "pruned_from": OPTIONAL_NAME,
        "dtype": str,
        "license": dict,
        "versions": dict,
        "parameters": {"dense": int, "pruned": int},
        "model_sparsity": NUMBER,
        "held_out": {"stages": [{"stage": str, "perplexity": OPTIONAL_NUMBER, "kl": OPTIONAL_NUMBER}], "kept": str},
        "tokens": dict,
        "samples": [{"prompt": str, "dense": str, "pruned": str}],
        **MEASURED,
    },
    "model": dict,
    "recovery": [
        {
            "options": dict,
            "source": str,
            "teacher": str,
            "dense_teacher": bool,
            "passes": dict,
            "curve": [EVALUATION],
            "kept": EVALUATION,
            "samples": dict,
            **MEASURED,
        }
    ],
}


def check_record(record: dict[str, Any], path: str | os.PathLike) -> None:
    """Raise `FFPError` if an entry of a record that something reads has another type."""
    _check(record, TYPES, "", path)


def _check(value: Any, expected: Any, name: str, path: str | os.PathLike) -> None:
    types = type(expected) if isinstance(expected, (dict, list)) else expected
    if not isinstance(value, types):
        names = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        raise FFPError(
            f"{path} is not a valid record: {name} must be of type {names}, found {value!r:.40}; copy the file "
            "from the original checkpoint"
        )
    if isinstance(expected, list):
        for index, item in enumerate(value):
            _check(item, expected[0], f"{name}[{index}]", path)
    elif isinstance(expected, dict):
        for key in expected:
            if key in value:
                _check(value[key], expected[key], f"{name}.{key}".removeprefix("."), path)

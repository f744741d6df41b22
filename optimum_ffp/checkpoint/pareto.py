"""Pareto front of a sweep over budgets, as JSON and plot."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FFPError
from ..hub.naming import without_folders
from ..utils.folders import RECORD
from ..utils.json import write_json
from .plots import write_front
from .result import PruningResult


def extend_front(front: Mapping[str, Any], result: PruningResult, swept: str = "sparsity") -> dict[str, Any]:
    """Return the record of the size and perplexity at every budget of a sweep, with one more result.

    `search_perplexity` compares policies before the final calibration, on the search windows. `perplexity` is that of
    the final model on the test windows.

    Args:
        front: Record of the previous results; empty if there are none.
        result: Result with the next budget.
        swept: Option of the budget that differs.
    """
    search = result.search
    dense = {
        "parameters": result.dense_parameters,
        "search_perplexity": search.dense_perplexity,
        "perplexity": result.tests[0][1]["dense"],
    }
    row = {
        "sparsity": result.policy.sparsity,
        "limit": next(limit for limit in search.budget if limit["option"] == swept),
        "parameters": result.parameters,
        "search_perplexity": search.baselines | ({"searched": search.best_perplexity} if search.windows else {}),
        "perplexity": result.perplexity,
        "candidate_evaluations": search.candidate_evaluations,
        "tokens_evaluated": search.tokens_evaluated,
    }
    windows = without_folders({"search_windows": search.windows, "test_windows": result.test.describe()})
    return {"dense": dense, "pruned": [*front.get("pruned", []), row], **windows}


def save_front(front: Mapping[str, Any], stem: str | os.PathLike) -> list[Path]:
    """Write `STEM.json` and `STEM.png`, and return their paths. Raises `FFPError` if they can't be written."""
    files = [Path(name) for name in front_files(stem)]
    try:
        write_json(files[0], front)
        write_front(front, files[1])
    except OSError as error:
        raise FFPError(f"the Pareto front can't be written: {error}; {RECORD} of each checkpoint has it") from None
    return files


def front_files(stem: str | os.PathLike) -> dict[str, bytes]:
    """Return the files of `save_front` with their first bytes."""
    return {f"{stem}.json": b'{"dense":', f"{stem}.png": b"\x89PNG"}

"""Writes `report.html`: everything that is known of a prune, as a single self-contained file."""

import base64
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..allocation.policy import GROUP_NAMES, block_parameters
from ..data import describe_shape, describe_windows
from ..hub.naming import TEXTS, dataset_name, is_hub_id, model_name, short_name
from .card import command_line
from .result import PruningResult, package_versions


TEMPLATE = "report_template.html"
REPORT_FILE = "report.html"


def write_report(result: PruningResult, folder: str | os.PathLike, plots: Mapping[str, str]) -> Path:
    """Writes `report.html`; sections without data are left out.

    Args:
        result: Result to report.
        folder: Folder of the checkpoint.
        plots: File names of the plots in it, as returned by `write_plots`; they are embedded.

    Returns:
        Path of the report.
    """
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number}
    environment.filters |= {"windows": describe_text, "shape": describe_shape}
    pictures = {name: _embed(Path(folder) / file) for name, file in plots.items()}
    path = Path(folder) / REPORT_FILE
    path.write_text(environment.get_template(TEMPLATE).render(_fields(result), pictures=pictures), encoding="utf-8")
    return path


def format_number(value: float, digits: int = 3) -> str:
    """Formats a number with `digits` decimals; infinity and NaN are "not finite"."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not finite"


def describe_text(windows: Mapping[str, Any]) -> str:
    """Formats the record of `Windows.describe` as one line, with the name of the dataset that readers know."""
    return describe_windows({**windows, "dataset": dataset_name(windows["dataset"])})


def _embed(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def _fields(result: PruningResult) -> dict[str, Any]:
    base, cost = result.base_model, result.cost
    total = sum(cost.seconds.values())
    return {
        "name": model_name(base),
        "base": short_name(base),
        "base_link": f"https://huggingface.co/{base}" if is_hub_id(base) else None,
        "result": result,
        "config": result.config,
        "policy": result.policy,
        "block_parameters": block_parameters(result.policy.units),
        "search": result.search,
        "perplexities": _perplexities(result),
        "distilled": _distilled(result),
        "layers": _layers(result),
        "front": result.search.front,
        "stages": [
            (name, cost.tokens.get(name), cost.peak_bytes[name], time, time / total)
            for name, time in cost.seconds.items()
        ],
        "total": total,
        "settings": _settings(result),
        "versions": package_versions(),
        "command": command_line(result),
    }


def _perplexities(result: PruningResult) -> list[dict[str, Any]]:
    """All perplexities of the prune, on test windows and on search windows, each with the dense model's."""
    calibrated = "calibrated" in result.losses
    names = {
        "dense": "dense",
        "searched": "pruned, before calibration" if calibrated else "pruned",
        "calibrated": "pruned and calibrated",
    }
    tests = [
        ("test windows", windows.describe(), [(names[name], value) for name, value in figures.items()])
        for windows, figures in result.tests
    ]
    search = result.search
    rewarded = "after ridge regression" if result.config.reward == "compensated" else "before calibration"
    found = [("dense", search.dense_perplexity), (f"final policy, {rewarded}", search.best_perplexity)]
    found += [(f"policy “{name}”, {rewarded}", value) for name, value in search.baselines.items()]
    tables = (*tests, ("search windows", search.windows, found))
    return [
        {"role": role, "windows": windows | {"dataset": dataset_name(windows["dataset"])}, "rows": rows}
        for role, windows, rows in tables
    ]


def _distilled(result: PruningResult) -> dict[str, Any] | None:
    """Mean held-out errors of the layers before and after distillation, those of the last norm, and the windows."""
    rows = result.calibration.get("layers")
    if not rows:
        return None
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("before", "error")}
    windows = {name: value for name, value in result.calibration.items() if name not in ("layers", "last_norm")}
    return {"means": means, "last_norm": result.calibration.get("last_norm"), "windows": windows}


def _layers(result: PruningResult) -> list[dict[str, Any]]:
    """One row per layer: for attention and FFN the number and kind of groups kept."""
    layers: dict[int, dict[str, Any]] = {}
    for unit, size in zip(result.policy.units, result.policy.sizes):
        cell = {"kept": size, "dense": unit.groups, "groups": GROUP_NAMES[unit.group]}
        layers.setdefault(unit.layer, {"layer": unit.layer})[unit.kind] = cell
    return list(layers.values())


def _settings(result: PruningResult) -> list[tuple[str, str]]:
    config = result.config
    # The datasets that the options name were not read if windows were given.
    unread = TEXTS if result.given_data else ()
    values = {name: getattr(config, name) for name in config.option_names() if name not in unread}
    values |= {name: dataset_name(values[name]) for name in TEXTS if values.get(name)}
    return [(name, _show(value)) for name, value in values.items()]


def _show(value: Any) -> str:
    if value is None:
        return "automatic"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

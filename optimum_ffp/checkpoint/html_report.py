"""HTML report of a prune, a single self-contained file."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..allocation.policy import GROUP_NAMES
from ..data import describe_windows
from ..utils.record import Record
from .view import format_number, view_record


TEMPLATE = "report_template.html"
REPORT_FILE = "report.html"
MODELS = {"dense": "dense", "searched": "pruned, before calibration", "calibrated": "pruned and calibrated"}


def write_report(record: Record, folder: Path) -> None:
    """Write `report.html`, with the plots of the same folder, omitting sections without data."""
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "windows": describe_windows}
    view = view_record(record)
    fields = view | {
        "pictures": {name: _embed(folder / file) for name, file in view["plots"].items()},
        "group_names": GROUP_NAMES,
        "perplexities": _perplexities(view),
        "settings": {name: _show(value) for name, value in record.options.items() if not isinstance(value, dict)},
    }
    (folder / REPORT_FILE).write_text(environment.get_template(TEMPLATE).render(fields), encoding="utf-8")


def _embed(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def _perplexities(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all perplexities of the prune and the dense model, on test windows and, of a search, on its windows."""
    search = view["search"]
    tests = [
        ("test windows", test, {MODELS[name]: value for name, value in test["figures"].items()})
        for test in view["tests"]
    ]
    if search.perplexity:
        stage = view["search_stage"]
        figures = {"dense": search.perplexity["dense"], f"final policy, {stage}": search.perplexity["best"]}
        figures |= {f"policy “{name}”, {stage}": value for name, value in search.baselines.items()}
        tests.append(("search windows", search.perplexity, figures))
    return [{"role": role, "windows": windows, "figures": [*figures.items()]} for role, windows, figures in tests]


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

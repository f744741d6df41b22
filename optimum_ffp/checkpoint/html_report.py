"""HTML report of a prune, a single self-contained file."""

from base64 import b64encode
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
    environment.filters |= {"number": format_number, "windows": describe_windows, "show": _show}
    view = view_record(record)
    fields = view | {
        "pictures": {name: b64encode((folder / file).read_bytes()).decode() for name, file in view["plots"].items()},
        "group_names": GROUP_NAMES,
        "models": MODELS,
    }
    (folder / REPORT_FILE).write_text(environment.get_template(TEMPLATE).render(fields), encoding="utf-8")


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""Writes the tables of options in a page: `python -m optimum_ffp.config.table docs/options.md`, by `make style`."""

import re
import sys
from dataclasses import fields
from pathlib import Path

from .fields import Config, shown_default
from .prune import FFPConfig
from .recovery import RecoveryConfig


HEAD = ["| option | default | `--preset paper` | read with | |", "|---|---|---|---|---|"]


def option_table(kind: type[Config]) -> str:
    """Return the table of all options of a config, with dashes where they are options of the command line."""
    rows = []
    for one in fields(kind):
        said = one.metadata
        name = f"--{one.name.replace('_', '-')}" if said["group"] else one.name
        paper = said["presets"].get("paper", "")
        when = f"`{said['when'][0]}` {', '.join(said['when'][1:])}" if said["when"] else ""
        rows.append(f"| `{name}` | {shown_default(one)} | {paper} | {when} | {said['help']} |")
    return "\n".join([*HEAD, *rows])


def with_tables(page: str) -> str:
    """Return the text of a page with the tables between its markers as they are now."""
    for kind in (FFPConfig, RecoveryConfig):
        begin, end = f"<!-- {kind.__name__} -->\n", f"\n<!-- end of {kind.__name__} -->"
        page = re.sub(f"(?<={begin}).*?(?={end})", lambda _, kind=kind: option_table(kind), page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

"""Write the tables of options in a page: `python -m optimum_ffp.config.table docs/options.md`, by `make style`."""

import re
import sys
from dataclasses import fields
from pathlib import Path

from .fields import Config, format_default
from .prune import FFPConfig
from .recovery import RecoveryConfig


HEAD = ["| option | default | `--preset paper` | read with | |", "|---|---|---|---|---|"]


def option_table(config_class: type[Config]) -> str:
    """Return the table of all options of a config; those of the command line are written with dashes."""
    rows = []
    for field in fields(config_class):
        metadata = field.metadata
        name = f"--{field.name.replace('_', '-')}" if metadata["group"] else field.name
        paper = metadata["presets"].get("paper", "")
        when = f"`{metadata['when'][0]}` {', '.join(metadata['when'][1:])}" if metadata["when"] else ""
        rows.append(f"| `{name}` | {format_default(field)} | {paper} | {when} | {metadata['help']} |")
    return "\n".join([*HEAD, *rows])


def with_tables(page: str) -> str:
    """Return the text of a page with the tables between its markers updated."""
    for config_class in (FFPConfig, RecoveryConfig):
        begin, end = f"<!-- {config_class.__name__} -->\n", f"\n<!-- end of {config_class.__name__} -->"
        page = re.sub(
            f"(?<={begin}).*?(?={end})",
            lambda _, config_class=config_class: option_table(config_class),
            page,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

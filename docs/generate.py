"""Write the generated parts of the documentation, by `make style`: `python docs/generate.py`."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import optimum_ffp
from optimum_ffp.config import EvaluationConfig, FFPConfig, RecoveryConfig
from optimum_ffp.config.choices import KINDS, built_in_options
from optimum_ffp.config.fields import Config, format_default


FOLDER = Path(__file__).parent
# Presets of a prune other than the default.
PRESETS = ("fast", "best", "paper")
SECTION = r"^(Args|Attributes|Returns|Raises|Example):\n"


def option_table(config_class: type[Config]) -> str:
    """Return the table of all options of a config; those of the command line are written with dashes."""
    has_presets = config_class is FFPConfig
    columns = ["option", "default"]
    if has_presets:
        columns += [*(f"`{name}`" for name in PRESETS), "option of"]
    head = f"| {' | '.join(columns)} |"
    lines = [head, re.sub(r"[^|]+", "---", head)]
    owners = {
        field.name: f"`{option} {name}`"
        for option in KINDS
        for name, options in reversed(built_in_options(option).items())
        for field in options.option_fields()
    }
    for field in config_class.all_fields():
        metadata = field.metadata
        name = f"--{field.name.replace('_', '-')}" if metadata["group"] else field.name
        cells = [f"`{name}`", format_default(field)]
        if has_presets:
            cells += [str(metadata["presets"].get(name, "")).lower().strip("()") for name in PRESETS]
            cells.append(owners.get(field.name, ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def type_name(annotation: Any) -> str:
    """Return a type as in code, without the modules of classes and the quotes of later ones."""
    return re.sub(r"\b(\w+\.)+(?=\w)|'", "", inspect.formatannotation(annotation))


def markdown(docstring: str, types: Mapping[str, str] | None = None) -> str:
    """Return a docstring of Google's style as Markdown, with its sections as lists, and the types of some names."""
    known = types or {}
    sections = re.split(SECTION, inspect.cleandoc(docstring), flags=re.M)
    parts = [sections[0].strip()]
    for title, body in zip(sections[1::2], sections[2::2]):
        body = dedent(body).strip()
        if title == "Example":
            parts.append("```python\n" + re.sub(r"^>>> ", "", body, flags=re.M) + "\n```")
            continue
        entries = re.sub(r"\n +", " ", body)
        entries = re.sub(r"^(\w+): ", lambda match: f"- `{known.get(match[1], match[1])}`: ", entries, flags=re.M)
        parts.append(f"**{title}**\n\n{entries}")
    return "\n\n".join(parts)


def call(name: str, value: Any) -> str:
    """Return how a function or class is called, with its types; long calls have a line per parameter."""
    signature = inspect.signature(value)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{mark}{parameter.name}: {type_name(parameter.annotation)}{default}")
    result = "" if inspect.isclass(value) else f" -> {type_name(signature.return_annotation)}"
    # Constructors of configs return their own class.
    result = result.replace("~T", name.partition(".")[0])
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= 100:
        return line
    rows = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{rows}){result}"


def api_entries(name: str, value: Any) -> Iterator[str]:
    """Yield the entries of a public name and of its methods."""
    is_config = inspect.isclass(value) and issubclass(value, Config)
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    usage = f"{name}(**options)" if is_config else f"{name}(message)" if is_error else call(name, value)
    types = {one.name: f"{one.name}: {type_name(one.type)}" for one in value.all_fields()} if is_config else {}
    yield f"## {name}\n\n```python\n{usage}\n```\n\n{markdown(value.__doc__, types)}"
    if not inspect.isclass(value):
        return
    methods = ["from_file"] if is_config else [method for method in vars(value) if not method.startswith("_")]
    for method in methods:
        function = getattr(value, method)
        if inspect.isroutine(function):
            title = f"{name}.{method}"
            yield f"### {title}\n\n```python\n{call(title, function)}\n```\n\n{markdown(function.__doc__)}"


def generated() -> dict[str, str]:
    """Return the generated parts by the name of their markers."""
    public = {name: getattr(optimum_ffp, name) for name in optimum_ffp.__all__ if name != "__version__"}
    return {
        "options of a prune": option_table(FFPConfig),
        "options of a recovery": option_table(RecoveryConfig),
        "options of an evaluation": option_table(EvaluationConfig),
        "api": "\n\n".join(entry for name, value in public.items() for entry in api_entries(name, value)),
    }


def updated(page: str) -> str:
    """Return the text of a page with the parts between its markers updated."""
    for name, text in generated().items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        page = re.sub(f"(?<={begin}).*?(?={end})", lambda _, text=text: text, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for path in FOLDER.glob("*.md"):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")

"""Choices that are modules, such as search agents and criteria, and the options that they own.

A choice is a module with a function of a given name. If it has options, it also has a class `Options`, a `Config`
whose fields are declared with `option`; the function takes an instance of it as the argument `options`. Modules with
options import PyTorch and transformers only when their function is called, so that `--help` stays fast.
"""

from collections.abc import Mapping
from dataclasses import Field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import FFPError
from .fields import Config, choice_folder


class Kind(NamedTuple):
    """Package whose modules are the choices of an option, and the function that makes a module one of them."""

    package: str
    function: str = "search"


KINDS = {
    "method": Kind("search.methods"),
    "agent": Kind("search.agents"),
    "criterion": Kind("analysis.criteria", "score"),
    "expert_criterion": Kind("analysis.expert_criteria", "score"),
    "mapping": Kind("allocation.mappings", "map_scores"),
    "calibration": Kind("compression.calibrations", "calibrate"),
}


def find_choice(option: str, name: str) -> ModuleType:
    """Import the module of a choice, on demand because some take seconds.

    Args:
        option: An option whose choices are modules.
        name: One of its choices, or the dotted name of a module of another package.

    Raises:
        FFPError: If a module of another package can't be imported, or lacks the function for this option.
    """
    if "." not in name:
        return import_module(f"..{KINDS[option].package}.{name.replace('-', '_')}", __package__)
    try:
        module = import_module(name)
    except ImportError as error:
        raise FFPError(f"{option} {name} can't be imported: {error}") from None
    if not hasattr(module, KINDS[option].function):
        raise FFPError(f"{option} {name} has no function {KINDS[option].function!r}")
    return module


@cache
def built_in_options(option: str) -> dict[str, type[Config]]:
    """Return the options of an option's choices by module name; modules without any aren't imported."""
    files = sorted(choice_folder(KINDS[option].package).glob("*.py"))
    names = (file.stem.replace("_", "-") for file in files if "\nclass Options(" in file.read_text(encoding="utf-8"))
    return {name: find_choice(option, name).Options for name in names}


def options_of(option: str, name: str) -> type[Config] | None:
    """Return the class of a choice's options, if it has any."""
    return getattr(find_choice(option, name), "Options", None) if "." in name else built_in_options(option).get(name)


def fields_of_choices(options: Mapping[str, Any]) -> dict[str, Field]:
    """Return the fields of all choices' options by name, including those of other packages' modules in `options`."""
    classes = [one for option in KINDS for one in built_in_options(option).values()]
    for option in KINDS:
        name = options.get(option)
        if isinstance(name, str) and "." in name and (owner := options_of(option, name)):
            classes.append(owner)
    return {field.name: field for one in classes for field in one.option_fields()}

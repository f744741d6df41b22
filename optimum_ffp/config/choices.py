"""Choices that are modules, such as search agents and criteria, and the options that they own.

A choice is a module with a function of a given name. If it has options, it also has a class `Options`, a `Config`
whose fields are declared with `option`; the function takes an instance of it as the argument `options`. Modules with
options import PyTorch and transformers only when their function is called, so that `--help` stays fast.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import FFPError


class Kind(NamedTuple):
    """Package whose modules are the choices of an option, and the function that makes a module one of them."""

    package: str
    function: str = "search"

    @property
    def files(self) -> list[Path]:
        """Files of the modules."""
        folder = Path(__file__).parents[1].joinpath(*self.package.split("."))
        return sorted(file for file in folder.glob("*.py") if file.stem != "__init__")


KINDS = {
    "method": Kind("search.methods"),
    "agent": Kind("search.agents"),
    "criterion": Kind("analysis.criteria", "score"),
    "expert_criterion": Kind("analysis.expert_criteria", "score"),
    "mapping": Kind("allocation.mappings", "map_scores"),
    "calibration": Kind("compression.calibrations", "calibrate"),
}


def is_module(option: str, name: Any) -> bool:
    """Return whether a value is the dotted name of a module of another package, for an option that allows it."""
    return option in KINDS and isinstance(name, str) and "." in name


@cache
def built_in_choices(option: str) -> tuple[str, ...]:
    """Return the choices in this package. A module `fisher_obs.py` is the choice `fisher-obs`."""
    return tuple(file.stem.replace("_", "-") for file in KINDS[option].files)


def find_choice(option: str, name: str) -> ModuleType:
    """Import the module of a choice, on demand because some take seconds.

    Raises:
        FFPError: If a module of another package can't be imported, or lacks the function for this option.
    """
    if not is_module(option, name):
        return import_module(f"..{KINDS[option].package}.{name.replace('-', '_')}", __package__)
    try:
        module = import_module(name)
    except ImportError as error:
        raise FFPError(f"{option} {name} can't be imported: {error}") from None
    if not hasattr(module, KINDS[option].function):
        raise FFPError(f"{option} {name} has no function {KINDS[option].function!r}")
    return module


@cache
def built_in_options(option: str) -> dict[str, Any]:
    """Return the classes of the choices' options by choice; modules without any aren't imported."""
    texts = (file.read_text(encoding="utf-8") for file in KINDS[option].files)
    names = (name for name, text in zip(built_in_choices(option), texts) if "\nclass Options(" in text)
    return {name: find_choice(option, name).Options for name in names}


def options_of(option: str, name: str) -> Any:
    """Return the class of a choice's options, if it has any."""
    if is_module(option, name):
        return getattr(find_choice(option, name), "Options", None)
    return built_in_options(option).get(name)

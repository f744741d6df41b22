"""Search methods. Every module implements the method of its name in `search`.

`search` takes a `SearchTask`, the config and, for a warm start, the state of an agent of an earlier search. Random
search, evolutionary search and the policies without a search are baselines for the agents of `ffp`. All methods use
the same evaluator.
"""

from importlib import import_module
from types import ModuleType


def find_method(name: str) -> ModuleType:
    """Return the module of a method, by its name."""
    return import_module(f"{__package__}.{name.replace('-', '_')}")

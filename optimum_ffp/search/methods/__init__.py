"""Ways to find a policy. Every module is the method of its name: its `search` finds the policy.

`search` takes a `SearchTask`, the config and, for a warm start, the state of an agent that has searched before. Random
search, evolution and the policies of no search are what the agents of `ffp` have to beat, behind the same evaluator.
"""

from importlib import import_module
from types import ModuleType


def find_method(name: str) -> ModuleType:
    """The module that a method is."""
    return import_module(f"{__package__}.{name.replace('-', '_')}")

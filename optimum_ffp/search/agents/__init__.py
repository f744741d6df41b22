"""Agents of single-step reinforcement learning. Every module implements the agent of its name in `search`."""

from importlib import import_module
from types import ModuleType


def find_agent_module(name: str) -> ModuleType:
    """Return the module of an agent, imported on demand: stable-baselines3 takes seconds, and only PPO needs it."""
    return import_module(f"{__package__}.{name.replace('-', '_')}")

"""Agents of single-step reinforcement learning. Every module is the agent of its name: `search` finds the policy."""

from importlib import import_module
from types import ModuleType


def find_agent_module(name: str) -> ModuleType:
    """The module that an agent is. It alone is imported: stable-baselines3 takes seconds, and PPO alone needs it."""
    return import_module(f"{__package__}.{name.replace('-', '_')}")

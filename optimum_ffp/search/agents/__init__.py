"""Agents of the single-step search: a gradient method and PPO.

Every module implements the agent of its name in `search`, and checks in `check_state` what it may start from.
"""

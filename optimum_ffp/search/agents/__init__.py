"""Agents of single-step reinforcement learning.

Every module implements the agent of its name in `search`, and checks in `check_state` what it may start from.
"""

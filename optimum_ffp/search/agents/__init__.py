"""Agents of single-step reinforcement learning. Every module implements the agent of its name in `search`."""

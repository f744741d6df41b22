"""Utilities shared by all stages."""

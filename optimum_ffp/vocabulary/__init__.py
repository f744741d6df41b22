"""Vocabularies with fewer tokens."""

"""Measurements of the dense model that precede the search."""

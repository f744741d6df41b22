"""The same retention for every unit: no search, for which the runner uses the uniform mapping."""

from .no_search import search


__all__ = ["search"]

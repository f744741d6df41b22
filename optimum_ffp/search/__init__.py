"""Finding the policy. What a candidate is worth comes from outside: nothing here knows the language model."""

from .methods import METHODS, search
from .task import SearchResult, SearchTask


__all__ = ["METHODS", "SearchResult", "SearchTask", "search"]

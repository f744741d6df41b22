"""Finding the policy. What a candidate is worth comes from outside: nothing here knows the language model."""

from .methods import METHODS, NO_SEARCH, search
from .task import SearchResult, SearchTask


__all__ = ["METHODS", "NO_SEARCH", "SearchResult", "SearchTask", "search"]

"""Finding the policy. What a candidate is worth comes from outside: nothing here knows the language model."""

from .methods import METHODS, NO_SEARCH, search
from .task import SearchResult, SearchTask, finalist_count


__all__ = ["METHODS", "NO_SEARCH", "SearchResult", "SearchTask", "finalist_count", "search"]

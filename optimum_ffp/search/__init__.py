"""Finding the policy. Of what is in here `runner` and `evaluator` alone know the language model."""

from .methods import METHODS, NO_SEARCH, search
from .task import SearchResult, SearchTask, finalist_count


__all__ = ["METHODS", "NO_SEARCH", "SearchResult", "SearchTask", "finalist_count", "search"]

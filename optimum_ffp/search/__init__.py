"""Finding the policy. What a candidate is worth comes from outside: nothing here knows the language model."""

from .methods import METHODS, NO_SEARCH, search
from .task import GRADIENT_COST, SearchResult, SearchTask


__all__ = ["GRADIENT_COST", "METHODS", "NO_SEARCH", "SearchResult", "SearchTask", "search"]

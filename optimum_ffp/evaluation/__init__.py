"""How good and how large a model is."""

from .perplexity import Perplexity, to_perplexity, window_losses


__all__ = ["Perplexity", "to_perplexity", "window_losses"]

"""How good and how large a model is."""

from .perplexity import Perplexity, window_losses


__all__ = ["Perplexity", "window_losses"]

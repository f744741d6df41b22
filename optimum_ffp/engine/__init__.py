"""Runs a causal LM layer by layer, wherever its weights are: all windows go through a layer before the next."""

from .backward import UNKNOWN, backward_passes, graphs_freed
from .layer_runner import Arguments, LayerRunner
from .layerwise_model import LayerwiseModel
from .token_counter import TokenCounter


__all__ = ["UNKNOWN", "Arguments", "LayerRunner", "LayerwiseModel", "TokenCounter", "backward_passes", "graphs_freed"]

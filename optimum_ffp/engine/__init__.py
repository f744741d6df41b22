"""Runs a causal LM layer by layer, with resident or offloaded weights: all windows pass a layer before the next."""

from .backward import UNKNOWN, backward_passes, free_graphs
from .hidden_states import HiddenStates
from .layer_runner import LayerRunner
from .layerwise_model import LayerwiseModel

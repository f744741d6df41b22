"""Backward elimination by change of the loss: `obs` on weights multiplied by the root of the Fisher matrix."""

from .obs import score as score

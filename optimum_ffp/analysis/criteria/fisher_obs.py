"""Backward elimination by change of the loss: `obs` on weights multiplied by the root of the Fisher matrix."""

from .obs import WORKSPACE_BYTES, score


__all__ = ["WORKSPACE_BYTES", "score"]

"""The code that checkpoints carry, one small file per family, and the class that loads them without remote code."""

from .auto import FFPModelForCausalLM, pruned_config, pruned_model_class


__all__ = ["FFPModelForCausalLM", "pruned_config", "pruned_model_class"]

"""Model code that is saved in checkpoints, one file per family, and the class to load them without remote code."""

from .auto import FFPModelForCausalLM, pruned_config, pruned_model_class


__all__ = ["FFPModelForCausalLM", "pruned_config", "pruned_model_class"]

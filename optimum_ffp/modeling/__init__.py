"""Model loading, supported families, and the modeling code saved in checkpoints, one file per family."""

from .auto import FFPModelForCausalLM

"""Model loading, supported families, and the modeling code saved in checkpoints, one file per family."""

from .auto import (
    FFPModelForCausalLM,
    attention_of,
    homogeneous_config,
    is_homogeneous,
    pruned_config,
    pruned_model_class,
)

"""A plugin of vLLM, by which it serves pruned models without `--trust-remote-code`."""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..families import FAMILIES


def register() -> None:
    """Register the architectures of pruned models. vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    for model_type, family in FAMILIES.items():
        # Pruned mixtures have the architecture of the dense model.
        if not family.experts:
            dense = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
            prefix = dense.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
            # By name, so that vLLM imports the model only if it serves one.
            ModelRegistry.register_model(f"FFP{prefix}ForCausalLM", f"{__name__}.model:TransformersForCausalLM")

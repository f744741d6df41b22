"""A plugin of vLLM, by which it serves pruned models without `--trust-remote-code`."""

from ..families import FAMILIES


def register() -> None:
    """Register the architectures of pruned models. vLLM calls this in each of its processes."""
    from vllm.model_executor.models import ModelRegistry

    for family in FAMILIES.values():
        if architecture := family.classes.get("AutoModelForCausalLM"):
            # By name, so that vLLM imports the model only if it serves one.
            ModelRegistry.register_model(architecture, f"{__name__}.model:TransformersForCausalLM")

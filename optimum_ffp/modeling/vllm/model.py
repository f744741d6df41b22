"""Pruned models on vLLM's Transformers backend."""

from transformers import AutoModel
from vllm.config import VllmConfig
from vllm.model_executor.models import transformers as backend
from vllm.model_executor.models.transformers.fusers import AttentionFuser

from ..auto import pruned_model_class
from ..families import find_family


class TransformersForCausalLM(backend.TransformersForCausalLM):
    """A pruned model that runs the code of this package instead of that in the checkpoint.

    It has the name of its base class, by which vLLM recognizes models of the backend.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        # The backend builds the model by `AutoModel.from_config`.
        AutoModel.register(type(config), pruned_model_class(find_family(config), "AutoModel"), exist_ok=True)
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _create_attention_instances(self, prefix: str = "") -> None:
        # The backend refuses layers without attention. They get one that is never called, and vLLM forgets it before
        # it allocates the KV cache.
        family = find_family(self.config)
        skipped = {
            layer: f"model.{family.layers}.{layer}.{family.attention_modules[0]}"
            for layer, config in enumerate(self.config.per_layer_config)
            if "attention" in getattr(config, "skip", [])
        }
        fuser = AttentionFuser(source_cls="Removed")
        self.attention_fusers |= {layer: (name, fuser) for layer, name in skipped.items()}
        super()._create_attention_instances(prefix)
        for name in skipped.values():
            self.compilation_config.static_forward_context.pop(f"{name}.attn", None)

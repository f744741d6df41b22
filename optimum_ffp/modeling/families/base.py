"""What a family record says."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...allocation.policy import Group
from ...errors import FFPError


@dataclass(frozen=True)
class Family:
    """Names of the modules and config attributes of one model type. Module names are relative to a decoder layer.

    Projections with the same name are fused in one module, with their rows concatenated (`qkv_proj`, `gate_up_proj`).

    Attributes:
        model_type: `config.model_type` of the family's models.
        layers: Name of the list of decoder layers, relative to the `AutoModel` class.
        query, key, value: Projections whose rows belong to heads.
        fused_by_head: Whether fused rows are ordered by head (query, key and value of the first head, then of the
            next) instead of by projection.
        attention_output: Projection whose columns belong to query heads.
        ffn_inputs: Projections whose rows are FFN channels (gate and up, or `fc1`).
        ffn_output: Projection whose columns are FFN channels.
        width_attribute: Config attribute of the number of FFN channels.
        attention_modules, ffn_modules: Modules of a layer that go when its attention or its FFN is removed. The first
            then yields zeros, and the others are the identity. Norms stay if both blocks or the residual need them.
        head_counters: Attributes of a layer that depend on the number of heads: the attribute's path, and the quantity
            it holds (`"heads"`, `"kv_heads"`, `"heads_per_kv_head"`, or `"features"`, which is query heads times head
            dimension). The default is what transformers' grouped-query attention has.
        prunes_attention: Whether attention heads can be removed.
        normalized_outputs: Whether the output projections of attention and FFN are followed by a norm, so that errors
            count relative to the norm of the output.
        prepare: Idempotent function to apply to a loaded dense model before its units are determined.
        modeling: Full name of the module with the modeling code, for a family of another package.
    """

    model_type: str
    layers: str = "layers"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    fused_by_head: bool = False
    attention_output: str = "self_attn.o_proj"
    ffn_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_output: str = "mlp.down_proj"
    width_attribute: str = "intermediate_size"
    attention_modules: tuple[str, ...] = ("self_attn", "input_layernorm")
    ffn_modules: tuple[str, ...] = ("mlp", "post_attention_layernorm")
    head_counters: tuple[tuple[str, str], ...] = (("self_attn.num_key_value_groups", "heads_per_kv_head"),)
    prunes_attention: bool = True
    normalized_outputs: bool = False
    prepare: Callable[[PreTrainedModel], None] | None = None
    modeling: str | None = None

    @property
    def modeling_module(self) -> str:
        """Name of the module with the modeling code in a checkpoint."""
        return (self.modeling or f"modeling_ffp_{self.model_type}").rpartition(".")[2]

    @property
    def class_prefix(self) -> str:
        """Beginning of the names of the classes in transformers, such as `Llama`."""
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.model_type]
        return name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")

    @property
    def auto_map(self) -> dict[str, str]:
        """The `auto_map` of a checkpoint's config."""
        return {auto: f"{self.modeling_module}.{name}" for auto, name in self.classes.items()}

    @property
    def classes(self) -> dict[str, str]:
        """Names of our classes of pruned models, by the auto class that loads them."""
        stem = f"FFP{self.class_prefix}"
        return {"AutoModel": f"{stem}Model", "AutoModelForCausalLM": f"{stem}ForCausalLM"}

    @property
    def pruned_modules(self) -> set[str]:
        """Names of the modules that lose parameters, which sparsity refers to."""
        return {self.query, self.key, self.value, self.attention_output, *self.ffn_inputs, self.ffn_output}

    def heads(self, config: PretrainedConfig) -> tuple[int, int, int]:
        """Return the numbers of query heads and KV heads, and the head dimension, of the dense model."""
        heads = config.num_attention_heads
        return heads, getattr(config, "num_key_value_heads", None) or heads, head_dimension(config)

    def attention_groups(self, config: PretrainedConfig) -> tuple[Group, ...]:
        """Return the kinds of groups that can be removed from attention of a dense model, KV groups first.

        KV groups need several KV heads, and query heads need several of them per KV head.
        """
        heads, kv_heads, _ = self.heads(config)
        if not self.prunes_attention:
            return ("all_heads",)
        if self.fused_by_head or heads == kv_heads:
            return ("kv_group",)
        return ("kv_group", "query_head") if kv_heads > 1 else ("query_head",)

    def width(self, config: PretrainedConfig) -> int:
        """Return the number of FFN channels of the dense model, which GPT-2's config may leave out."""
        return getattr(config, self.width_attribute) or 4 * config.hidden_size

    def count_experts(self, config: PretrainedConfig) -> int:
        """Return the number of experts of every layer of a mixture; raise `FFPError` if there are none."""
        raise FFPError(f"a model of type {self.model_type} has no experts; leave out experts")

    def layer_overrides(self, config: PretrainedConfig, sizes: dict[Group, int]) -> dict[str, Any]:
        """Return a layer's entry of `per_layer_config` for the numbers of groups to keep; others are unchanged.

        A part that is removed is named in `skip`, and has no sizes.
        """
        heads, kv_heads, _ = self.heads(config)
        kept_kv_heads = sizes.get("kv_group", kv_heads)
        kept_heads = kept_kv_heads * sizes.get("query_head", heads // kv_heads)
        rows = (
            ("num_attention_heads", kept_heads, heads),
            ("num_key_value_heads", kept_kv_heads, kv_heads),
            (self.width_attribute, sizes["channel"], self.width(config)),
        )
        kept = {name: size for name, size, dense in rows if hasattr(config, name) and size not in (0, dense)}
        skip = ["mlp" if group == "channel" else "attention" for group, size in sizes.items() if size == 0]
        return kept | ({"skip": skip} if skip else {})


@dataclass(frozen=True)
class Mixture(Family):
    """A mixture of experts, which loses the same number of experts in every layer, so that the dense class loads it.

    The names of other projections and sizes are not read.

    Attributes:
        count: Config attribute of the number of experts.
        router: Module whose tensors have a row per expert.
        experts: Module with the experts' weights, along the first dimension of its tensors.
        grouped: Whether the router first chooses `config.topk_group` of `config.n_group` groups of experts, which must
            be equally large.
    """

    prunes_attention: bool = False
    count: str = "num_experts"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    grouped: bool = False

    @property
    def classes(self) -> dict[str, str]:
        """Empty: pruned models have the class of the dense model."""
        return {}

    @property
    def pruned_modules(self) -> set[str]:
        """Names of the router and of the experts."""
        return {self.router, self.experts}

    def count_experts(self, config: PretrainedConfig) -> int:
        """Return the number of experts of every layer that has some."""
        return getattr(config, self.count)

    def router_groups(self, config: PretrainedConfig) -> int:
        """Return the number of groups that the router chooses from."""
        return config.n_group if self.grouped else 1

    def min_experts(self, config: PretrainedConfig) -> int:
        """Return the smallest number of experts: as many as a token is routed to.

        Groups need at least two each, since the router ranks them by their two best.
        """
        top_k = config.num_experts_per_tok
        if not self.grouped:
            return top_k
        return config.n_group * max(2, math.ceil(top_k / config.topk_group))


def head_dimension(config: PretrainedConfig) -> int:
    """Return the dimension of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

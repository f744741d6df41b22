"""The table of supported model types: the names of their projections and sizes, where these differ from Llama's."""

import copy

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .base import Family, Mixture


# Vision-language models whose language model is in the table.
MULTIMODAL = ("gemma3", "idefics3", "internvl", "llava", "llava_next", "mistral3", "smolvlm")


class TransposedLinear(nn.Linear):
    """A projection whose checkpoint holds the weight as `[in_features, out_features]`."""


def _copy_config_per_layer(model: PreTrainedModel) -> None:
    # Phi-3's attention splits the output of `qkv_proj` by the number of heads in its config.
    for layer in model.base_model.get_submodule("layers").children():
        attention = vars(layer.get_submodule("self_attn"))
        if attention["config"] is model.config:
            attention["config"] = copy.copy(model.config)


def _transpose_projections(model: PreTrainedModel) -> None:
    for name, module in list(model.base_model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            linear = TransposedLinear(inputs, outputs, device="meta")
            linear.weight = nn.Parameter(module.weight.data.t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            model.base_model.set_submodule(name, linear)


def _set_actual_width(model: PreTrainedModel) -> None:
    # LFM2 derives it from a size for an FFN without a gate.
    model.config.intermediate_size = model.get_submodule("model.layers.0.feed_forward.w2").in_features
    model.config.block_auto_adjust_ff_dim = False


# Norms that follow an attention or an FFN, with one before it or without.
BETWEEN_NORMS = {
    "attention_modules": ("self_attn", "input_layernorm", "post_attention_layernorm"),
    "ffn_modules": ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "normalized_outputs": True,
}
BEFORE_NORMS = {
    "attention_modules": ("self_attn", "post_attention_layernorm"),
    "ffn_modules": ("mlp", "post_feedforward_layernorm"),
    "normalized_outputs": True,
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        # Separate projections, grouped-query attention, RMS or layer norms.
        Family("llama"),
        Family("mistral"),
        # Queries are scaled by their position, which pruning doesn't change.
        Family("ministral3"),
        # Biases of the query, key and value projections are pruned with their heads.
        Family("qwen2"),
        # Query and key norms have the size of one head and are shared by all heads, so pruning doesn't change them.
        Family("qwen3"),
        Family("hunyuan_v1_dense"),
        # Norms after attention and FFN act on the outputs of the output projections, whose size pruning doesn't
        # change.
        Family("gemma2", **BETWEEN_NORMS),
        Family("gemma3_text", **BETWEEN_NORMS),
        Family("exaone4", **BEFORE_NORMS),
        # Query and key norms run across all heads, so that removing one would change those that stay.
        Family("olmo2", prunes_attention=False, **BEFORE_NORMS),
        Family("olmo3", prunes_attention=False, **BEFORE_NORMS),
        Family("gemma"),
        Family("granite"),
        Family("smollm3"),
        Family("ernie4_5"),
        Family("seed_oss"),
        # Attention and FFN share their input, and its norm.
        Family("cohere2", attention_modules=("self_attn",), ffn_modules=("mlp",)),
        # The FFN has no gate.
        Family("arcee", ffn_inputs=("mlp.up_proj",)),
        # Fused projections.
        Family(
            "phi3",
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            ffn_inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"),
            head_counters=(
                ("self_attn.config.num_attention_heads", "heads"),
                ("self_attn.num_key_value_heads", "kv_heads"),
                ("self_attn.num_key_value_groups", "heads_per_kv_head"),
            ),
            prepare=_copy_config_per_layer,
        ),
        Family(
            "glm4",
            ffn_inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"),
            attention_modules=("self_attn", "input_layernorm", "post_self_attn_layernorm"),
            ffn_modules=("mlp", "post_attention_layernorm", "post_mlp_layernorm"),
            normalized_outputs=True,
        ),
        # Attention and FFN may share their input (parallel residual), which makes no difference for pruning.
        Family(
            "gpt_neox",
            query="attention.query_key_value",
            fused_by_head=True,
            attention_output="attention.dense",
            ffn_inputs=("mlp.dense_h_to_4h",),
            ffn_output="mlp.dense_4h_to_h",
            attention_modules=("attention", "input_layernorm"),
        ),
        # Fused and stored transposed.
        Family(
            "gpt2",
            layers="h",
            query="attn.c_attn",
            key="attn.c_attn",
            value="attn.c_attn",
            attention_output="attn.c_proj",
            ffn_inputs=("mlp.c_fc",),
            ffn_output="mlp.c_proj",
            attention_modules=("attn", "ln_1"),
            ffn_modules=("mlp", "ln_2"),
            width_attribute="n_inner",
            head_counters=(("attn.num_heads", "heads"), ("attn.split_size", "features")),
            prepare=_transpose_projections,
        ),
        # A two-layer FFN, biases in all projections, learned positions.
        Family(
            "opt",
            layers="decoder.layers",
            attention_output="self_attn.out_proj",
            ffn_inputs=("fc1",),
            ffn_output="fc2",
            # The norms of OPT-350m follow the residual.
            attention_modules=("self_attn",),
            ffn_modules=("fc1", "fc2"),
            width_attribute="ffn_dim",
            # OPT's attention reshapes by this count; other families infer it from the width of the projection.
            head_counters=(("self_attn.num_heads", "heads"),),
        ),
        # Most layers have a convolution in place of attention.
        Family(
            "lfm2",
            attention_output="self_attn.out_proj",
            ffn_inputs=("feed_forward.w1", "feed_forward.w3"),
            ffn_output="feed_forward.w2",
            attention_modules=("self_attn", "operator_norm"),
            ffn_modules=("feed_forward", "ffn_norm"),
            prepare=_set_actual_width,
        ),
        # Mixtures of experts. Shared experts, which every token passes, stay.
        Mixture("qwen3_moe"),
        Mixture("qwen2_moe"),
        Mixture("olmoe"),
        Mixture("mixtral", count="num_local_experts"),
        Mixture(
            "granitemoe",
            count="num_local_experts",
            router="block_sparse_moe.router",
            experts="block_sparse_moe.experts",
        ),
        Mixture("deepseek_v3", count="n_routed_experts", grouped=True),
        Mixture("glm4_moe", count="n_routed_experts", grouped=True),
    )
}

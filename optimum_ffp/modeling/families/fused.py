"""Families whose projections are fused in one module, or stored transposed."""

import copy

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .base import Family


class TransposedLinear(nn.Linear):
    """A projection whose checkpoint holds the weight as `[in_features, out_features]`."""


def _copy_config_per_layer(model: PreTrainedModel) -> None:
    # Phi-3's attention splits the output of `qkv_proj` by the number of heads in its config.
    for layer in model.base_model.layers:
        if layer.self_attn.config is model.config:
            layer.self_attn.config = copy.copy(model.config)


def _transpose_projections(model: PreTrainedModel) -> None:
    for name, module in list(model.base_model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            linear = TransposedLinear(inputs, outputs, device="meta")
            linear.weight = nn.Parameter(module.weight.data.t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            model.base_model.set_submodule(name, linear)


PHI3 = Family(
    model_type="phi3",
    title="Phi-3",
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
)

GLM4 = Family(
    model_type="glm4",
    title="GLM-4",
    ffn_inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"),
    attention_modules=("self_attn", "input_layernorm", "post_self_attn_layernorm"),
    ffn_modules=("mlp", "post_attention_layernorm", "post_mlp_layernorm"),
    normalized_outputs=True,
)

GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX",
    query="attention.query_key_value",
    fused_by_head=True,
    attention_output="attention.dense",
    ffn_inputs=("mlp.dense_h_to_4h",),
    ffn_output="mlp.dense_4h_to_h",
    attention_modules=("attention", "input_layernorm"),
    kv_heads_attribute=None,
)
"""Attention and FFN may share their input (parallel residual), which makes no difference for pruning."""

GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
    layers="h",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    attention_output="attn.c_proj",
    ffn_inputs=("mlp.c_fc",),
    ffn_output="mlp.c_proj",
    attention_modules=("attn", "ln_1"),
    ffn_modules=("mlp", "ln_2"),
    kv_heads_attribute=None,
    width_attribute="n_inner",
    default_width=4,
    head_counters=(("attn.num_heads", "heads"), ("attn.split_size", "features")),
    prepare=_transpose_projections,
)

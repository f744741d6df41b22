"""OPT: multi-head attention without KV groups, a two-layer FFN, biases in all projections, learned positions."""

from .base import Family


OPT = Family(
    model_type="opt",
    layers="decoder.layers",
    attention_output="self_attn.out_proj",
    ffn_inputs=("fc1",),
    ffn_output="fc2",
    # The norms of OPT-350m follow the residual.
    attention_modules=("self_attn",),
    ffn_modules=("fc1", "fc2"),
    kv_heads_attribute=None,
    width_attribute="ffn_dim",
    # OPT's attention reshapes by this count; other families infer it from the width of the projection.
    head_counters=(("self_attn.num_heads", "heads"),),
)

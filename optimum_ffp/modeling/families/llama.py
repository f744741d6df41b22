"""Families with the layout of Llama: separate projections, grouped-query attention, RMS or layer norms."""

from .base import Family


# Modules of an attention and of an FFN that are followed by a norm, with or without one before them.
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
LLAMA_LIKE = (
    Family(model_type="llama"),
    Family(model_type="mistral"),
    # Queries are scaled by their position, which pruning doesn't change.
    Family(model_type="ministral3", title="Ministral 3"),
    # Biases of the query, key and value projections are pruned with their heads.
    Family(model_type="qwen2"),
    # Query and key norms have the size of one head and are shared by all heads, so pruning doesn't change them.
    Family(model_type="qwen3"),
    Family(model_type="hunyuan_v1_dense", title="HunYuan"),
    # Norms after attention and FFN act on the outputs of the output projections, whose size pruning doesn't change.
    Family(model_type="gemma2", title="Gemma 2", **BETWEEN_NORMS),
    Family(model_type="gemma3_text", title="Gemma 3", **BETWEEN_NORMS),
    Family(model_type="exaone4", title="EXAONE 4", **BEFORE_NORMS),
    # Query and key norms run across all heads, so that removing one would change those that stay.
    Family(model_type="olmo2", prunes_attention=False, title="OLMo 2", **BEFORE_NORMS),
    Family(model_type="olmo3", prunes_attention=False, title="OLMo 3", **BEFORE_NORMS),
    Family(model_type="gemma"),
    Family(model_type="granite"),
    Family(model_type="smollm3"),
    Family(model_type="ernie4_5", title="ERNIE 4.5"),
    Family(model_type="seed_oss", title="Seed-OSS"),
    # Attention and FFN share their input, and its norm.
    Family(model_type="cohere2", title="Cohere 2", attention_modules=("self_attn",), ffn_modules=("mlp",)),
    # The FFN has no gate.
    Family(model_type="arcee", ffn_inputs=("mlp.up_proj",)),
)

"""Families with the layout of Llama: grouped-query attention, a gated FFN, RMS norms."""

from .base import Family


LLAMA = Family(model_type="llama")
MISTRAL = Family(model_type="mistral")
QWEN2 = Family(model_type="qwen2")
"""Biases of the query, key and value projections are pruned with their heads."""
QWEN3 = Family(model_type="qwen3")
"""Query and key norms have the size of one head and are shared by all heads, so pruning doesn't change them."""
GEMMA2 = Family(model_type="gemma2", normalised_outputs=True, title="Gemma 2")
"""Norms after attention and FFN act on the outputs of the output projections, whose size pruning doesn't change."""
GEMMA3 = Family(model_type="gemma3_text", normalised_outputs=True, title="Gemma 3")
GRANITE = Family(model_type="granite")
SMOLLM3 = Family(model_type="smollm3")

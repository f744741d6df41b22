"""Families laid out as Llama is: grouped queries, a gated FFN, RMS norms."""

from .base import Family


LLAMA = Family(model_type="llama")
MISTRAL = Family(model_type="mistral")
QWEN2 = Family(model_type="qwen2")
"""Biases on the query, key and value projections go with their heads."""
QWEN3 = Family(model_type="qwen3")
"""Query and key norms are as wide as one head and shared by all, so pruning leaves them alone."""
GEMMA2 = Family(model_type="gemma2", title="Gemma 2")
"""Norms after attention and FFN see what the output projections add up to, whatever the number of heads."""
GEMMA3 = Family(model_type="gemma3_text", title="Gemma 3")
GRANITE = Family(model_type="granite")
SMOLLM3 = Family(model_type="smollm3")

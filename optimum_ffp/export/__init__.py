"""Export to GGUF for llama.cpp and software based on it."""

from .writer import export_gguf, plan_export

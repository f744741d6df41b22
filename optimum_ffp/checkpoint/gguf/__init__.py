"""Export to GGUF, for llama.cpp and software based on it."""

from .writer import OUTPUT_TYPES, export_gguf


__all__ = ["OUTPUT_TYPES", "export_gguf"]

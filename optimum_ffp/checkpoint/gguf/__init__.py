"""A model as one GGUF file for llama.cpp and what is built on it."""

from .writer import OUTPUT_TYPES, export_gguf


__all__ = ["OUTPUT_TYPES", "export_gguf"]

"""Export to GGUF, for llama.cpp and software based on it."""

from .architectures import check_exportable
from .writer import OUTPUT_TYPES, export_gguf, plan_export


__all__ = ["OUTPUT_TYPES", "check_exportable", "export_gguf", "plan_export"]

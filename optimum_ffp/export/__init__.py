"""Export to GGUF for llama.cpp and software based on it."""

from .architectures import check_exportable
from .writer import export_gguf, plan_export

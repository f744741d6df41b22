"""Perplexity, task accuracy, size and speed of a model."""

from .divergence import Predictions
from .latency import Speed, measure_speed
from .perplexity import to_perplexity, window_losses
from .record import compare_records, perplexity_record, size_record
from .size import kv_cache_bytes, projection_parameters, recorded_sparsity, weight_bytes
from .table import comparison_table
from .zero_shot import TaskSuite


__all__ = [
    "Predictions",
    "Speed",
    "TaskSuite",
    "compare_records",
    "comparison_table",
    "kv_cache_bytes",
    "measure_speed",
    "perplexity_record",
    "projection_parameters",
    "recorded_sparsity",
    "size_record",
    "to_perplexity",
    "weight_bytes",
    "window_losses",
]

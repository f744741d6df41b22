"""Perplexity, divergence, task accuracy, size and speed of models."""

from .evaluate import Evaluation, evaluate
from .latency import measure_speed
from .perplexity import bits_per_byte, to_perplexity, window_losses
from .size import projection_parameters
from .tasks import TaskSuite

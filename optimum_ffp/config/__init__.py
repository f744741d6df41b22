"""The options of a prune, a recovery and an evaluation. Imports neither torch nor transformers."""

from .evaluation import EvaluationConfig
from .prune import FFPConfig
from .recovery import RecoveryConfig, RecoveryPlan
from .training import TrainingOptions

"""The options of a prune and of a recovery. Imports neither torch nor transformers."""

from .plan import Plan
from .prune import FFPConfig
from .recovery import RecoveryConfig, RecoveryPlan
from .training import TrainingOptions

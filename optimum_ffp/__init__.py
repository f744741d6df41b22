"""optimum-ffp: structured pruning of causal language models, built on FastForward Pruning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__


if TYPE_CHECKING:
    from .allocation.policy import PruningPolicy
    from .config import EvaluationConfig, FFPConfig, RecoveryConfig
    from .errors import FFPError
    from .evaluation import evaluate
    from .modeling import FFPModelForCausalLM
    from .modeling.loading import LoadOptions
    from .pruner import FFPPruner
    from .recovery.recovery import FFPRecovery
    from .utils.progress import report_progress

__all__ = [
    "EvaluationConfig",
    "FFPConfig",
    "FFPError",
    "FFPModelForCausalLM",
    "FFPPruner",
    "FFPRecovery",
    "LoadOptions",
    "PruningPolicy",
    "RecoveryConfig",
    "__version__",
    "evaluate",
    "report_progress",
]
# Imported on first use: `optimum-cli` imports this package at every start and must not import torch.
_MODULES = {
    "EvaluationConfig": ".config",
    "FFPConfig": ".config",
    "FFPError": ".errors",
    "FFPModelForCausalLM": ".modeling",
    "FFPPruner": ".pruner",
    "FFPRecovery": ".recovery.recovery",
    "LoadOptions": ".modeling.loading",
    "PruningPolicy": ".allocation.policy",
    "RecoveryConfig": ".config",
    "evaluate": ".evaluation",
    "report_progress": ".utils.progress",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

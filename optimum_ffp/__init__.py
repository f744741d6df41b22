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
    from .pruner import FFPPruner
    from .recovery.recovery import FFPRecovery

__all__ = [
    "EvaluationConfig",
    "FFPConfig",
    "FFPError",
    "FFPModelForCausalLM",
    "FFPPruner",
    "FFPRecovery",
    "PruningPolicy",
    "RecoveryConfig",
    "__version__",
    "evaluate",
]
# Imported on first use: `optimum-cli` imports this package at every start and must not import torch.
_MODULES = {
    "EvaluationConfig": ".config",
    "FFPConfig": ".config",
    "FFPError": ".errors",
    "FFPModelForCausalLM": ".modeling",
    "FFPPruner": ".pruner",
    "FFPRecovery": ".recovery.recovery",
    "PruningPolicy": ".allocation.policy",
    "RecoveryConfig": ".config",
    "evaluate": ".evaluation",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

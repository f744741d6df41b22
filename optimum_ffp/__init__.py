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

# Imported on first use: `optimum-cli` imports this package at every start and must not import torch.
_PUBLIC = {
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
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

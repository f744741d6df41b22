"""What a prune has produced: the model, and everything that a report needs to say."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..allocation.policy import PruningPolicy
from ..config import FFPConfig
from ..data import Windows
from ..utils.profiling import StageMeter


@dataclass
class PruningResult:
    """A pruned model and how it came about.

    Attributes:
        model: The pruned model, a real `PreTrainedModel`.
        tokenizer: The dense model's.
        config: All options; `config.sparsity` is what was asked for.
        policy: What every unit keeps.
        base_model: Hub id, folder or file of the dense model.
        dense_parameters: Parameters of the whole dense model.
        perplexities: `dense`, `searched` (before calibration, if that is what was searched for) and `calibrated`, on
            the test windows.
        test: The test windows.
        search: Counts and figures of the search.
        calibration: Of sequential calibration: λ and relative error on held-out windows of every unit. λ is infinite,
            in JSON `null`, where what ridge regression gives is better than any fit.
        log: One record a candidate evaluation.
        agent: Weights of the agent for policy transfer.
        cost: Time and peak memory of every stage.
        revision: Commit of the dense model on the Hub, if it is from there.
        trust_remote_code: Whether code of the tokenizer's repository could run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: FFPConfig
    policy: PruningPolicy
    base_model: str
    dense_parameters: int
    perplexities: dict[str, float]
    test: Windows
    search: dict[str, Any]
    calibration: dict[str, Any]
    log: list[dict[str, Any]]
    agent: dict[str, np.ndarray] | None
    cost: StageMeter
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def dtype(self) -> str:
        """Name of the torch type that everything was computed in."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        """Parameters of the whole pruned model; tied ones count once."""
        return self.model.num_parameters()

    @property
    def model_sparsity(self) -> float:
        """Fraction of the whole model's parameters that is removed."""
        return 1 - self.parameters / self.dense_parameters

    @property
    def perplexity(self) -> float:
        """Of the model as it is: after calibration, if there was one."""
        return self.perplexities.get("calibrated", self.perplexities.get("searched"))

    def to_dict(self) -> dict[str, Any]:
        """What `ffp_config.json` keeps beside the options."""
        provenance = {
            "base_model": self.base_model,
            "revision": self.revision,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            "versions": package_versions(),
            "parameters": {"dense": self.dense_parameters, "pruned": self.parameters},
            "model_sparsity": self.model_sparsity,
            "perplexity": self.perplexities | self.test.describe(),
            "held_out": self.calibration,
            "seconds": {name: round(value, 2) for name, value in self.cost.seconds.items()},
            "peak_gib": {name: round(value / 2**30, 3) for name, value in self.cost.peak_bytes.items()},
        }
        search = self.search | {"retentions": self.policy.retentions, "sizes": self.policy.sizes}
        return {"policy": self.policy.to_dict(), "search": search, "provenance": provenance}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in ("optimum-ffp", "transformers", "optimum", "torch", "stable-baselines3"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions

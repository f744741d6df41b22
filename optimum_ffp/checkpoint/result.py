"""Results of a search and of a prune."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..allocation.policy import PruningPolicy
from ..config.budgets import describe_limits
from ..data import Windows
from ..plan import Plan
from ..utils import processes
from ..utils.precision import dtype_name
from ..utils.profiling import StageMeter
from ..utils.record import Provenance, SearchRecord
from ..version import __version__


@dataclass
class FoundPolicy:
    """What a search method returns.

    Attributes:
        policy: Number of groups that each unit keeps.
        best_perplexity: Its perplexity on the search windows; `None` if no policies were compared.
        log: One record per candidate evaluation.
        baselines: Perplexity of policies without a search by method, if evaluated; of one that dropped out, that of
            the dense model times the ratio on the windows that were read.
        agent: State of the agent for policy transfer, if the method has one.
    """

    policy: PruningPolicy
    best_perplexity: float | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    agent: Mapping[str, np.ndarray] | None = None


@dataclass(kw_only=True)
class SearchResult(FoundPolicy):
    """A policy and the search that found it.

    Attributes:
        plan: Options, with the budget.
        budget: Limits by `option`: the value `asked` for, that of the `dense` model, and the one `reached`.
        times: Measured times of attention and FFNs by size, if the budget or the check of the speed needed them.
        dense_perplexity: Perplexity of the dense model on the search windows, if policies were compared.
        tokens_evaluated: Tokens in forward passes for these evaluations.
        windows: Description of the search windows, if policies were compared.
        calibrated_on: Description of the calibration windows.
        warm_start: Checkpoint whose agent the search started from.
        note: Where the policy is from, if it wasn't searched for.
        cost: Time, memory and tokens of the search.
    """

    plan: Plan
    budget: list[dict[str, Any]]
    times: dict[str, Any] | None
    dense_perplexity: float | None
    tokens_evaluated: int
    windows: dict[str, Any]
    calibrated_on: dict[str, Any]
    warm_start: str | None
    note: str | None
    cost: StageMeter

    def to_record(self) -> SearchRecord:
        """Return what `ffp_config.json` says about the search."""
        found = {"dense": self.dense_perplexity, "best": self.best_perplexity} | self.windows
        return SearchRecord(
            method=self.plan.method,
            seed=self.plan.seed,
            candidate_evaluations=len(self.log),
            tokens_evaluated=self.tokens_evaluated,
            non_finite=sum(entry["perplexity"] is None for entry in self.log),
            calibrated_on=self.calibrated_on,
            warm_start=self.warm_start,
            note=self.note,
            budget=self.budget,
            perplexity=found if self.windows else None,
            baselines={**self.baselines},
        )


@dataclass(repr=False)
class PruningResult:
    """A pruned model and the record of its prune.

    Attributes:
        model: The pruned model, a `PreTrainedModel`.
        tokenizer: Tokenizer of the pruned model.
        search: The policy and its search.
        plan: Options. Those of calibration may differ from `search.plan`.
        base_model: Hub id, folder or file of the dense model.
        dense_parameters: Parameters of the dense model.
        test_windows: Test windows of each text.
        losses: Losses of every test window of every text, in nats per token, by model: `dense`, `searched` (before
            calibration, if `plan.reports_searched`) and `calibrated`.
        samples: What the dense and the pruned model write greedily after a `prompt`; none if the weights of the dense
            model don't stay on the device.
        calibration: Record of the calibration (`Calibration.record`).
        experts: Of a mixture, the experts by layer that are `rare`, which got fewer calibration tokens than they have
            `features`, and the `routing`: by layer, the numbers of test tokens of all experts `before` and `after`.
        cost: Time, peak memory and tokens per stage.
        compute_dtype: Name of the compute dtype for losses on test windows.
        revision: Commit of the dense model on the Hub, if loaded from there.
        trust_remote_code: Whether code in the tokenizer's repository was allowed to run.
        license: Fields of the license of the dense model's card.
        given_data: Whether windows were passed by the caller instead of loaded from the datasets in the options.
        request: Digest of the command, by which `--resume` recognizes its result.
        vocabulary: Of a trimmed vocabulary, what `TrimmedVocabulary.describe` says about the first test windows.
        pruned_from: The pruned model that was pruned further, `id@commit` on the Hub; `None` if it was the dense one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    search: SearchResult
    plan: Plan
    base_model: str
    dense_parameters: int
    test_windows: Sequence[Windows]
    losses: dict[str, list[list[float]]]
    samples: list[dict[str, str]]
    calibration: dict[str, Any]
    cost: StageMeter
    compute_dtype: str
    revision: str | None = None
    trust_remote_code: bool = False
    license: Mapping[str, str] = field(default_factory=dict)
    given_data: bool = False
    request: str | None = None
    pruned_from: str | None = None
    experts: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [
            f"PruningResult of {self.base_model}",
            f"  sparsity: {self.policy.sparsity:.2%}, {self.model_sparsity:.2%} of the whole model",
            f"  parameters: {self.dense_parameters:,} -> {self.parameters:,}",
            *(f"  budget: {text}" for text in [describe_limits(self.search.budget)] if text),
            *(
                f"  perplexity on {text}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
                for text, figures in self.perplexities.items()
            ),
            f"  search: {self.plan.method}, {len(self.search.log)} candidates",
            f"  calibration: {self.plan.calibration}",
        ]
        return "\n".join(lines)

    @property
    def policy(self) -> PruningPolicy:
        """Number of groups that each unit keeps."""
        return self.search.policy

    @property
    def log(self) -> list[dict[str, Any]]:
        """One record per candidate evaluation."""
        return self.search.log

    @property
    def agent(self) -> Mapping[str, np.ndarray] | None:
        """State of the agent for policy transfer."""
        return self.search.agent

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return dtype_name(self.model.dtype)

    @property
    def parameters(self) -> int:
        """Parameters of the pruned model; tied weights count once."""
        return self.model.num_parameters()

    @property
    def tokens(self) -> int:
        """Tokens in forward passes over all stages, except the evaluation on test windows."""
        return self.provenance().tokens_read

    @property
    def model_sparsity(self) -> float:
        """Removed fraction of all parameters of the model."""
        return 1 - self.parameters / self.dense_parameters

    @property
    def tests(self) -> list[tuple[Windows, dict[str, float]]]:
        """Test windows of each text, with perplexities by model, as in `losses`."""
        return [*zip(self.test_windows, perplexities_by_text(self.losses))]

    @property
    def test(self) -> Windows:
        """Test windows of the first text."""
        return self.test_windows[0]

    @property
    def perplexities(self) -> dict[str, dict[str, float]]:
        """Perplexities of all texts by name, each by model: `{"c4": {"dense": ..., "calibrated": ...}}`."""
        return {windows.dataset: figures for windows, figures in self.tests}

    @property
    def perplexity(self) -> float:
        """Perplexity of the pruned model on the first text."""
        return final(self.tests[0][1])

    def provenance(self) -> Provenance:
        """Return what `ffp_config.json` says about the models and what was measured."""
        first, *rest = (figures | windows.describe() for windows, figures in self.tests)
        measured = {
            "versions": package_versions(*(["stable-baselines3"] if self.plan.uses_ppo else [])),
            "parameters": {"dense": self.dense_parameters, "pruned": self.parameters},
            "perplexity": first,
            "other_texts": rest,
            "held_out": self.calibration,
            "tokens": self.cost.tokens,
            "processes": processes.count(),
            "seconds": {name: round(value, 2) for name, value in self.cost.seconds.items()},
            "peak_gib": {name: round(value / 2**30, 3) for name, value in self.cost.peak_bytes.items()},
        }
        # The other entries are attributes of the result.
        names = (one.name for one in fields(Provenance) if one.name not in measured)
        return Provenance(**{name: getattr(self, name) for name in names}, **measured)


def perplexities_by_text(losses: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, float]]:
    """Return the perplexities by model for each text, from the losses of its windows in nats per token."""
    with np.errstate(over="ignore"):
        means = {name: [float(np.exp(np.mean(text))) for text in texts] for name, texts in losses.items()}
    return [dict(zip(means, values)) for values in zip(*means.values())]


def final(perplexities: Mapping[str, float]) -> float:
    """Return the perplexity of the final model."""
    return perplexities["calibrated" if "calibrated" in perplexities else "searched"]


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that all results depend on, and of more packages."""
    packages = ("transformers", "optimum", "torch", *more)
    installed = {package: version(package) for package in packages}
    return {"python": platform.python_version(), "optimum-ffp": __version__} | installed

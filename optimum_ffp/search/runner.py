"""From a prepared model to the policy that is kept: the search task, its evaluator, and what goes on record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..allocation.mapping import MAPPINGS, Budget, uniform
from ..allocation.policy import PruningPolicy
from ..analysis.prepare import Prepared
from ..config import FFPConfig
from ..data import Windows
from ..evaluation import to_perplexity
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from .evaluator import CandidateEvaluator
from .methods import NO_SEARCH, search
from .task import SearchTask


@dataclass
class FoundPolicy:
    """A policy and how it was found.

    Attributes:
        policy: What every unit keeps.
        config: All options; `config.sparsity` is what was asked for.
        record: Counts and figures of the search.
        log: One record a candidate evaluation.
        agent: Weights of the agent for policy transfer, if the method has one.
    """

    policy: PruningPolicy
    config: FFPConfig
    record: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    agent: dict[str, np.ndarray] | None = None


class PolicySearch:
    """Searches policies of one prepared model on one set of windows.

    Args:
        prepared: The sorted model, its ridge factors and loss curves.
        windows: Search windows.
        budget: Bounds and parameters to spend at a sparsity.
        config: All options.
        dtype: Type to compute candidates in under autocast; `None` for the model's own.
        journal: Keeps what candidates were worth.
        dense_losses: Losses of the dense model on these windows, if another search has measured them.
    """

    def __init__(
        self,
        prepared: Prepared,
        windows: Windows,
        budget: Callable[[float], Budget],
        config: FFPConfig,
        dtype: torch.dtype | None,
        journal: Journal,
        dense_losses: np.ndarray | None = None,
    ):
        self.curves, self.windows, self.budget, self.config = prepared.curves, windows, budget, config
        self.units = prepared.sorted_model.units
        compensated = config.reward == "calibrated"
        self.evaluator = CandidateEvaluator(
            prepared.sorted_model, windows.tokens, compensated, config.batch_size, dtype, journal, dense_losses
        )
        self.mapping = uniform if config.method == "uniform" else self.curves or MAPPINGS[config.mapping]

    def run(
        self,
        warm_start: Mapping[str, np.ndarray] | None = None,
        on_entry: Callable[[dict[str, Any]], Any] = lambda entry: None,
    ) -> FoundPolicy:
        """The search that the config names. Every record of its log is given to `on_entry` as it is made."""
        config = self.config
        # The curriculum begins with less than the bounds may allow.
        least = self.budget(config.sparsity).least_sparsity
        steps = 1 if config.method in NO_SEARCH else config.search_steps
        with progress_bar(steps, f"Search {config.sparsity:.0%}", "candidate") as bar:

            def show(entries: list[dict[str, Any]], cost: int, best: float) -> None:
                bar.set_postfix_str(f"best perplexity {best:.2f}", refresh=False)
                bar.update(cost)
                for entry in entries:
                    on_entry(entry)

            task = SearchTask(
                units=self.units,
                map_scores=lambda scores, sparsity: self.mapping(scores, self.budget(max(sparsity, least))),
                evaluate=self.evaluator,
                sparsity=config.sparsity,
                steps=steps,
                max_samples=len(self.windows),
                curves=self.curves,
                on_evaluated=show,
            )
            found = search(task, config, warm_start)
        dense = float(np.exp(self.evaluator.dense_losses.mean()))
        record = {
            "method": config.method,
            "seed": config.seed,
            "candidate_evaluations": self.evaluator.evaluations,
            "tokens_evaluated": self.evaluator.tokens,
            "non_finite": self.evaluator.non_finite,
            "perplexity": {"dense": dense, "best": found.perplexity} | self.windows.describe(),
        }
        return FoundPolicy(found.policy, config, record, found.log, found.agent)

    def baselines(self) -> dict[str, float]:
        """Perplexity on all search windows of what costs no search: the policies `uniform` and `prior`."""
        scores, budget = np.zeros(len(self.units)), self.budget(self.config.sparsity)
        policies = [mapping(scores, budget) for mapping in (uniform, self.mapping)]
        losses = self.evaluator(policies, np.arange(len(self.windows))).mean(1)
        return {name: to_perplexity(float(loss)) for name, loss in zip(("uniform", "no-search"), losses)}

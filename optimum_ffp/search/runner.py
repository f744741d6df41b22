"""Policy search on a measured model: creates the task and the evaluator, runs the method and records the search."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..allocation.budget import Budget
from ..allocation.mapping import uniform
from ..allocation.policy import Unit
from ..analysis.measurements import Measurements
from ..checkpoint.result import FoundPolicy, SearchRecord
from ..config import FFPConfig
from ..evaluation import to_perplexity
from ..options import NO_SEARCH, find_choice
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from .evaluator import CandidateEvaluator
from .task import AgentState, SearchResult, SearchTask


def budget_at(units: Sequence[Unit], sparsity: float, config: FFPConfig) -> Budget:
    """Return the budget for a sparsity. Raises `FFPError` if it can't be met."""
    return Budget(units, sparsity, config.min_retention, config.max_retention, config.rate_precision)


class PolicySearch:
    """Searches a policy for a measured model.

    Args:
        measured: The sorted model, its loss curves and the search windows.
        config: Options of the search.
    """

    def __init__(self, measured: Measurements, config: FFPConfig):
        self.measured, self.config = measured, config
        prepared, windows = measured.prepared, measured.data.search.tokens
        self.evaluator = CandidateEvaluator(
            prepared.sorted_model,
            measured.dense_losses,
            windows,
            config.reward == "compensated",
            config.batch_size,
            autocast_dtype(measured.model, config.search_dtype),
            measured.journal,
        )
        self.curves = prepared.curves
        self.mapping = (
            uniform if config.method == "uniform" else self.curves or find_choice("mapping", config.mapping).map_scores
        )

    def run(
        self,
        warm_start: AgentState | None = None,
        on_entry: Callable[[dict[str, Any]], Any] = lambda entry: None,
    ) -> FoundPolicy:
        """Run the search method `config.method`, a module in `methods`.

        Args:
            warm_start: State of an agent to start from.
            on_entry: Called with every new record of the log.
        """
        found = self._search(warm_start, on_entry)
        data, evaluator = self.measured.data, self.evaluator
        record = SearchRecord(
            method=self.config.method,
            seed=self.config.seed,
            candidate_evaluations=evaluator.evaluations,
            tokens_evaluated=evaluator.tokens,
            non_finite=evaluator.non_finite,
            dense_perplexity=float(np.exp(evaluator.dense_losses.mean())),
            best_perplexity=found.perplexity,
            windows=data.search.describe(),
            # There may be less text than was asked for.
            calibrated_on=data.calibration.describe(),
            repeated_windows=data.repeated,
            warm_start=getattr(warm_start, "source", None),
        )
        return FoundPolicy(found.policy, self.config, record, found.log, found.agent, found.trail)

    def budget(self, sparsity: float) -> Budget:
        """Bounds and parameters to spend at a sparsity."""
        return budget_at(self.measured.units, sparsity, self.config)

    def _search(self, warm_start: AgentState | None, on_entry: Callable[[dict[str, Any]], Any]) -> SearchResult:
        config = self.config
        # The curriculum may start at a lower sparsity than the bounds allow.
        least = self.budget(config.sparsity).least_sparsity
        steps = 1 if config.method in NO_SEARCH else config.search_steps
        with progress_bar(steps, f"Search {config.sparsity:.0%}", "candidate") as bar:

            def show(entries: list[dict[str, Any]], cost: int, best: float) -> None:
                bar.set_postfix_str(f"best perplexity {best:.2f}", refresh=False)
                bar.update(cost)
                for entry in entries:
                    on_entry(entry)

            task = SearchTask(
                units=self.measured.units,
                map_scores=lambda scores, sparsity: self.mapping(scores, self.budget(max(sparsity, least))),
                evaluate=self.evaluator,
                sparsity=config.sparsity,
                steps=steps,
                max_samples=len(self.measured.data.search),
                curves=self.curves,
                on_evaluated=show,
            )
            return find_choice("method", config.method).search(task, config, warm_start)

    def baselines(self) -> dict[str, float]:
        """Return the perplexity on all search windows of the policies without a search, by method."""
        scores, budget = np.zeros(len(self.measured.units)), self.budget(self.config.sparsity)
        policies = [mapping(scores, budget) for mapping in (uniform, self.mapping)]
        losses = self.evaluator(policies, np.arange(len(self.measured.data.search))).mean(1)
        return {name: to_perplexity(float(loss)) for name, loss in zip(("uniform", "no-search"), losses)}

"""Policy search on a measured model: creates the task and the evaluator, runs the method and records the search."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..allocation.budget import Budget
from ..allocation.homogeneous import homogeneous_policies
from ..allocation.mapping import uniform
from ..allocation.policy import PruningPolicy, Unit
from ..analysis.attention import GROUPS
from ..analysis.measurements import Measurements
from ..checkpoint.result import FoundPolicy, SearchRecord
from ..config import FFPConfig
from ..config.fields import NO_SEARCH, find_choice
from ..errors import FFPError
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from .evaluator import CandidateEvaluator
from .task import AgentState, SearchResult, SearchTask, divide_steps


logger = logging.getLogger(__name__)


def budget_at(units: Sequence[Unit], sparsity: float, config: FFPConfig) -> Budget:
    """Return the budget for a sparsity. Raises `FFPError` if it can't be met."""
    return Budget(units, sparsity, config.min_retention, config.max_retention, config.rate_precision)


def check_budget(
    ways: Iterable[Sequence[Unit]],
    sparsity: float,
    config: FFPConfig,
    is_homogeneous: Callable[[PruningPolicy], bool] = lambda policy: True,
) -> None:
    """Check that a sparsity can be met whichever groups attention will lose.

    Args:
        ways: Units by what attention may lose. Layers are alike, so that no mix of ways reaches less than all of them.
        sparsity: Fraction of the block parameters to remove.
        config: Retention bounds.
        is_homogeneous: Whether the dense model's own class can have the sizes of a policy, for that method.

    Raises:
        FFPError: If it can't be met.
    """
    met, problem = [], None
    for units in ways:
        try:
            budget = budget_at(units, sparsity, config)
            if config.method == "homogeneous":
                homogeneous_policies(budget, is_homogeneous)
            met += [name for name, group in GROUPS.items() if group == units[0].group]
        except FFPError as error:
            problem = error
    if problem is not None:
        raise FFPError(f"{problem}, or choose attention {met[0]!r}" if met else str(problem))


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
        self.mapping = self.curves or find_choice("mapping", config.mapping).map_scores

    def run(
        self,
        warm_start: AgentState | None = None,
        on_entry: Callable[[dict[str, Any]], Any] = lambda entry: None,
        with_baselines: bool = False,
    ) -> FoundPolicy:
        """Run the search method `config.method`, a module in `methods`.

        The uniform and the no-search policy are compared with the finalists of every search, and returned if they are
        better, unless `config.fall_back` is off: then they are only reported.

        Args:
            warm_start: State of an agent to start from.
            on_entry: Called with every new record of the log.
            with_baselines: Whether a method without a search reports the baselines too.
        """
        found = self._search(warm_start, on_entry, with_baselines)
        if self.config.method not in NO_SEARCH and not divide_steps(self.config)[0]:
            logger.warning(
                "%d candidate evaluations don't suffice for an update of the policy beside the comparison of the "
                "finalists, so that nothing was searched%s; raise search_steps, or choose method 'no-search'",
                self.config.evaluations,
                " at this sparsity" if warm_start is not None else "",
            )
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
            baselines=found.baselines,
        )
        return FoundPolicy(found.policy, self.config, record, found.log, found.agent, found.trail)

    def budget(self, sparsity: float) -> Budget:
        """Bounds and parameters to spend at a sparsity."""
        return budget_at(self.measured.units, sparsity, self.config)

    def _search(
        self, warm_start: AgentState | None, on_entry: Callable[[dict[str, Any]], Any], with_baselines: bool
    ) -> SearchResult:
        config, searches = self.config, self.config.method not in NO_SEARCH
        mapping = uniform if config.method == "uniform" else self.mapping
        # The curriculum may start at a lower sparsity than the bounds allow, and the last may be just below them.
        least = min(self.budget(config.sparsity).least_sparsity, config.sparsity)
        baselines = self._baselines() if searches or with_baselines else {}
        with progress_bar(config.evaluations + len(baselines), f"Search {config.sparsity:.0%}", "candidate") as bar:

            def show(entries: list[dict[str, Any]], cost: int, best: float) -> None:
                bar.set_postfix_str(f"best perplexity {best:.2f}", refresh=False)
                bar.update(cost)
                for entry in entries:
                    on_entry(entry)

            task = SearchTask(
                units=self.measured.units,
                # The search runs in every process, and on other machines agents may round otherwise.
                map_scores=lambda scores, sparsity: processes.from_main(
                    mapping(scores, self.budget(max(sparsity, least)))
                ),
                evaluate=self.evaluator,
                sparsity=config.sparsity,
                steps=config.evaluations,
                max_samples=len(self.measured.data.search),
                budget=self.budget(config.sparsity),
                is_homogeneous=self.measured.prepared.sorted_model.is_homogeneous,
                curves=self.curves,
                baselines=baselines,
                falls_back=searches and config.fall_back,
                on_evaluated=show,
            )
            found = find_choice("method", config.method).search(task, config, warm_start)
            # Finalists may be the same policy.
            bar.total = bar.n
            return processes.from_main(found)

    def _baselines(self) -> dict[str, PruningPolicy]:
        scores, budget = np.zeros(len(self.measured.units)), self.budget(self.config.sparsity)
        return {"uniform": uniform(scores, budget), "no-search": self.mapping(scores, budget)}

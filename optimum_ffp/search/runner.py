"""Policy search on a measured model: creates the task and the evaluator, runs the method and records the search."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..allocation.budget import Budget
from ..allocation.homogeneous import homogeneous_policies
from ..allocation.mapping import uniform
from ..allocation.policy import PruningPolicy, Unit, block_parameters
from ..analysis.attention import GROUPS
from ..analysis.measurements import Measurements
from ..checkpoint.result import SearchResult
from ..config import FFPConfig
from ..config.prune import find_choice
from ..engine.token_counter import total_tokens
from ..errors import FFPError
from ..evaluation.block_costs import measure_speedup
from ..hub.naming import short_name
from ..modeling.auto import is_homogeneous
from ..modeling.families import ModelUnit
from ..modeling.limits import find_limits, speedup_limit
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from .depth import WINDOWS, parts_of, remove_whole
from .evaluator import CandidateEvaluator
from .task import AgentState, SearchTask, finalist_count


logger = logging.getLogger(__name__)


def find_budget(model: PreTrainedModel, units: Sequence[Unit], config: FFPConfig) -> Budget:
    """Return the budget of a config for a model. Raises `FFPError` if it can't be met."""
    if config.depth != "none" and getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise FFPError("this model scales attention by layer index, so no layer can be removed; choose depth none")
    limits, removable = find_limits(model, units, config), sum(parts_of(units, config.depth), ())
    return Budget(units, limits, config.min_retention, config.max_retention, config.rate_precision, removable)


def check_budget(model: PreTrainedModel, variants: Iterable[Sequence[ModelUnit]], config: FFPConfig) -> Budget:
    """Check that a budget can be met with any choice of attention groups, and return it for the first of them.

    Args:
        model: The dense model; may be on the meta device.
        variants: Units by kind of attention group. Layers are equal, so mixed variants are never less feasible.
        config: The budget and retention bounds.

    Raises:
        FFPError: If it can't be met.
    """
    feasible, problem, budgets = [], None, []
    for units in ([unit.unit for unit in variant] for variant in variants):
        try:
            budgets.append(budget := find_budget(model, units, config))
            if config.method == "uniform" or config.mapping != "curves":
                budget.linear()
            if config.method == "homogeneous":
                homogeneous_policies(budget, partial(is_homogeneous, model))
            feasible += [name for name, group in GROUPS.items() if group == units[0].group]
        except FFPError as error:
            # KV groups come first, with which more can be removed.
            problem = problem or error
    if problem is not None:
        raise FFPError(f"{problem}, or choose attention {feasible[0]!r}" if feasible else str(problem))
    return budgets[0]


class PolicySearch:
    """Searches for a policy for a measured model.

    Args:
        measured: The sorted model, its loss curves and the search windows.
        config: Options of the search.
    """

    def __init__(self, measured: Measurements, config: FFPConfig):
        self.measured, self.config = measured, config.resolve()
        self.evaluator = CandidateEvaluator(
            measured.prepared.sorted_model,
            measured.dense_losses if self.config.compares_policies else None,
            measured.data.search.tokens,
            compensated=config.reward == "compensated",
            batch_size=config.batch_size,
            dtype=autocast_dtype(measured.model, config.search_dtype),
            journal=measured.journal,
        )
        self.curves = measured.prepared.curves
        if self.curves and self.config.method == "no-search" and self.config.trains:
            self.curves = self.curves.tilted(measured.units)
        self.budget = find_budget(measured.model, measured.units, self.config)
        # Those of policies without a search.
        self.equal_scores = np.zeros(len(measured.units))

    def mapping(self, scores: np.ndarray, budget: Budget) -> PruningPolicy:
        """Return the policy of raw scores, shape `[units]` or, with curves, `[units, parts]`, under a budget."""
        mapping = self.curves or find_choice("mapping", self.config.mapping).map_scores
        # The search runs in every process, and agents may round differently on other machines.
        return processes.from_main(mapping(scores, budget))

    def run(
        self, warm_start: AgentState | None = None, on_entry: Callable[[dict[str, Any]], Any] = lambda entry: None
    ) -> SearchResult:
        """Run the search method `config.method`, a module in `methods`.

        The uniform and the no-search policy are compared with the finalists of every search, and returned if they are
        better. Without `config.fall_back` they are only reported.

        Args:
            warm_start: State of an agent to start from.
            on_entry: Called with every new record of the log.
        """
        counter, method = self.measured.layerwise.counter, find_choice("method", self.config.method)
        read_before = counter.tokens
        if self.config.depth != "none":
            self.budget = self._without_parts()
        if self.config.speedup and "scale" not in self.config.costs:
            self._correct_costs()
        result = self._search(method, warm_start, on_entry)
        config, data = self.config, self.measured.data
        result.config, result.budget = config, self.budget.record(result.policy)
        if config.costs:
            self._check_speed(result)
        result.tokens_evaluated = total_tokens(counter.tokens - read_before)
        if config.compares_policies:
            result.dense_perplexity = float(np.exp(self.evaluator.dense_losses.mean()))
            result.windows = data.search.describe()
        # There may be less text than requested.
        result.calibrated_on = data.calibration.describe()
        result.warm_start = getattr(warm_start, "source", None)
        result.note = f"the policy is that of {short_name(config.policy)}" if config.policy else None
        return result

    def _search(
        self, method: ModuleType, warm_start: AgentState | None, on_entry: Callable[[dict[str, Any]], Any]
    ) -> SearchResult:
        """Run a search method with a progress bar. Arguments are those of `run`."""
        config, searches = self.config, not getattr(method, "IS_BASELINE", False)
        baselines = self._baselines() if searches else {}
        # The better half of the finalists counts again in the next round.
        total = config.search_steps + finalist_count(config.search_steps) + 2 * len(baselines) if searches else None
        description = f"Search, {self.budget}" if config.compares_policies else None
        with progress_bar(total, description, "evaluation") as bar:
            rewards: list[float] = []

            def show(entries: list[dict[str, Any]]) -> None:
                # Relative to the dense model, since candidates are evaluated on different windows.
                rewards.extend(one["reward"] for one in entries if one["target_sparsity"] == task.sparsity)
                if best := max(rewards, default=0):
                    bar.set_postfix_str(f"best perplexity {1 / best:.2f}x dense")
                for entry in entries:
                    on_entry(entry)

            self.evaluator.on_evaluation = bar.update
            task = SearchTask(
                budget=self.budget,
                mapping=self.mapping,
                evaluate=self.evaluator,
                steps=config.search_steps,
                max_samples=len(self.measured.data.search),
                is_homogeneous=partial(is_homogeneous, self.measured.model),
                curves=self.curves,
                baselines=baselines,
                fall_back=searches and config.fall_back,
                on_evaluated=show,
            )
            result = processes.from_main(method.search(task, config, warm_start))
            # Identical finalists are evaluated once.
            bar.total = bar.n
        if searches and not task.updates:
            logger.warning(
                "%d candidate evaluations are too few for policy updates besides the comparison of the "
                "finalists, so nothing was searched%s; raise search_steps, or choose method 'no-search'",
                config.search_steps,
                " with this budget" if warm_start is not None else "",
            )
        return result

    def _without_parts(self) -> Budget:
        """Compare policies without a search that remove more and more units whole; return the budget of the best."""
        config, windows = self.config, np.arange(len(self.measured.data.search))[:WINDOWS]
        is_uniform = config.method in ("uniform", "homogeneous") and self.budget.is_linear
        mapping = uniform if is_uniform else partial(self.mapping, self.equal_scores)

        def loss_of(policy: PruningPolicy) -> float:
            return float(np.nan_to_num(self.evaluator([policy], windows).mean(), nan=np.inf))

        with progress_bar(None, "Depth", "evaluation") as bar:
            self.evaluator.on_evaluation = bar.update
            return remove_whole(self.budget, config.depth, mapping, loss_of)

    def _correct_costs(self) -> None:
        """Scale the measured times so that they are right for the policy without a search, which is measured whole."""
        policy, table = self.mapping(self.equal_scores, self.budget), self.config.cost_table
        scale = max(0, 1 - 1 / self._measured_speed(policy)) / _saved_time(table, policy)
        self.config = replace(self.config, costs=table | {"scale": scale})
        removed = np.flatnonzero(self.budget.largest == 0)
        self.budget = find_budget(self.measured.model, self.measured.units, self.config).without(removed)

    def _measured_speed(self, policy: PruningPolicy) -> float:
        measure = partial(measure_speedup, self.measured.model, policy, self.config.workload)
        journal = self.measured.journal.part(policy.sizes)
        return journal.value("speedup", partial(processes.on_main, measure))

    def _check_speed(self, result: SearchResult) -> None:
        """Measure the speed of a policy, if one was asked for, and warn if it is low for what is removed."""
        policy, measured = result.policy, self.measured
        saved = _saved_time(self.config.cost_table, policy)
        share = policy.sparsity * block_parameters(policy.units) / measured.model.num_parameters()
        if saved < share / 2:
            logger.warning(
                f"{100 * share:.0f} % of the parameters are removed, but only {100 * saved:.0f} % of the time of "
                f"{self.config.workload} is saved: most of it is spent outside attention and FFNs"
            )
        for row in result.budget:
            if row["option"] == "speedup" and not measured.layerwise.weights.offloaded:
                row["measured"] = self._measured_speed(policy)

    def _baselines(self) -> dict[str, PruningPolicy]:
        policies = {"uniform": uniform(self.budget)} if self.budget.is_linear else {}
        return policies | {"no-search": self.mapping(self.equal_scores, self.budget)}


def _saved_time(table: dict[str, Any], policy: PruningPolicy) -> float:
    """Return the fraction of the dense model's time that a policy saves by measured times."""
    limit = speedup_limit(policy.units, table, 1)
    return 1 - 1 / limit.value(limit.cost(policy.sizes))

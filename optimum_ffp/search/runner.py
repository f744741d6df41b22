"""Policy search on a measured model: creates the task and the evaluator, runs the method and records the search."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..allocation.budget import Budget
from ..allocation.homogeneous import homogeneous_policies
from ..allocation.mapping import uniform
from ..allocation.mappings.curves import CurveMapping
from ..allocation.policy import PruningPolicy, Unit, block_parameters
from ..analysis.attention import GROUPS
from ..analysis.measurements import Measurements
from ..checkpoint.result import FoundPolicy, SearchResult
from ..config import FFPConfig
from ..config.choices import find_choice
from ..config.prune import TRAINING_SUFFICES
from ..engine.token_counter import total_tokens
from ..errors import FFPError
from ..evaluation.block_costs import measure_speedup
from ..hub.naming import short_name
from ..modeling.auto import is_homogeneous
from ..modeling.families import ModelUnit
from ..modeling.limits import find_limits, speedup_limit
from ..plan import Plan
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from .depth import WINDOWS, max_evaluations, parts_of, remove_whole
from .evaluator import CandidateEvaluator
from .task import AgentState, SearchTask, finalist_count


logger = logging.getLogger(__name__)
NO_SEARCH = (
    f"skipped: at {100 * TRAINING_SUFFICES:g} % sparsity and above, training makes it redundant; --method ffp searches"
)


def find_budget(
    model: PreTrainedModel,
    units: Sequence[Unit],
    config: FFPConfig,
    limits: Mapping[str, float],
    times: dict[str, Any] | None = None,
) -> Budget:
    """Return the budget for the limits of a model, by option. Raises `FFPError` if it can't be met.

    The model may be on the meta device. The times are those of `measure_costs`, if they are known.
    """
    if config.depth != "none" and getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise FFPError("this model scales attention by layer index, so no layer can be removed; choose depth none")
    return Budget(
        units,
        find_limits(model, units, config, limits, times),
        min_retention=config.min_retention,
        max_retention=config.max_retention,
        precision=config.rate_precision,
        removable=sum(parts_of(units, config.depth), ()),
    )


def check_budget(
    model: PreTrainedModel,
    variants: Iterable[Sequence[ModelUnit]],
    config: FFPConfig,
    limits: Mapping[str, float],
    times: dict[str, Any] | None = None,
) -> Budget:
    """Check that a budget can be met with any choice of attention groups, and return it for the first of them.

    The `variants` are the units by kind of attention group. Layers are equal, so mixed variants are never less
    feasible. Otherwise as `find_budget`.
    """
    feasible, problem, budgets = [], None, []
    for units in ([unit.unit for unit in variant] for variant in variants):
        try:
            budgets.append(budget := find_budget(model, units, config, limits, times))
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
    """Searches for a policy for a measured model, with the times of `measure_costs` if the plan needs them."""

    def __init__(self, measured: Measurements, plan: Plan, times: dict[str, Any] | None = None):
        self.measured, self.plan, self.times = measured, plan, times
        self.meter = StageMeter(counter=measured.layerwise.counter)
        self.evaluator = CandidateEvaluator(
            measured.prepared.sorted_model,
            measured.dense_losses if plan.compares_policies else np.empty(0),
            measured.data.search.tokens,
            compensated=plan.reward == "compensated",
            batch_size=plan.batch_size,
            dtype=autocast_dtype(measured.model, plan.search_dtype),
            journal=measured.journal,
        )
        self.curves = self.tilted = measured.prepared.curves
        if self.curves and plan.trains:
            self.tilted = self.curves.tilted(measured.units)
        if plan.method == "no-search":
            self.curves = self.tilted
        # Units of another kind of attention group may have been chosen, and times measured.
        is_known = measured.units == plan.budget.units and times is None
        self.budget = plan.budget if is_known else self._find_budget()

    def _find_budget(self) -> Budget:
        return find_budget(self.measured.model, self.measured.units, self.plan, self.plan.limits, self.times)

    def mapping(self, scores: np.ndarray, budget: Budget, curves: CurveMapping | None = None) -> PruningPolicy:
        """Return the policy of raw scores, shape `[units]` or, with curves, `[units, parts]`, under a budget."""
        mapping = curves or self.curves or self.plan.function("mapping")
        # The search runs in every process, and agents may round differently on other machines.
        return processes.from_main(mapping(scores, budget))

    def no_search(self, budget: Budget) -> PruningPolicy:
        """Return the policy of method `no-search` under a budget."""
        return self.mapping(np.zeros(len(budget.units)), budget, self.tilted)

    def run(
        self, warm_start: AgentState | None = None, on_entry: Callable[[dict[str, Any]], Any] = lambda entry: None
    ) -> SearchResult:
        """Run the search method `plan.method`, a module in `methods`.

        The uniform and the no-search policy are compared with the finalists of every search, and returned if they are
        better. Without `plan.fall_back` they are only reported. `warm_start` is an agent to start from, and
        `on_entry` is called with every record of the log.
        """
        counter, plan, data = self.measured.layerwise.counter, self.plan, self.measured.data
        read_before = counter.tokens
        if plan.depth != "none":
            self.budget = self._without_parts()
        if plan.speedup and self.times and "scale" not in self.times:
            self._correct_times(self.times)
        found = self._search(warm_start, on_entry)
        note = f"the policy is that of {short_name(plan.policy)}" if plan.policy else None
        return SearchResult(
            **vars(found),
            plan=plan,
            budget=self._reached(found.policy),
            times=self.times,
            tokens_evaluated=total_tokens(counter.tokens - read_before),
            dense_perplexity=float(np.exp(self.evaluator.dense_losses.mean())) if plan.compares_policies else None,
            windows=data.search.describe() if plan.compares_policies else {},
            # There may be less text than requested.
            calibrated_on=data.calibration.describe(),
            warm_start=getattr(warm_start, "source", None),
            note=NO_SEARCH if plan.skips_search else note,
            cost=self.meter,
        )

    def _search(self, warm_start: AgentState | None, on_entry: Callable[[dict[str, Any]], Any]) -> FoundPolicy:
        """Run the search method with a progress bar."""
        plan = self.plan
        searches = not getattr(find_choice("method", plan.method), "IS_BASELINE", False)
        baselines: dict[str, PruningPolicy] = {}
        if searches:
            baselines |= {"uniform": uniform(self.budget)} if self.budget.is_linear else {}
            baselines["no-search"] = self.no_search(self.budget)
        # The better half of the finalists counts again in the next round.
        total = plan.search_steps + finalist_count(plan.search_steps) + 2 * len(baselines) if searches else None
        description = f"Search, {self.budget}" if plan.compares_policies else None
        with progress_bar(total, description, "evaluation") as bar:
            rewards = [0.0]

            def show(entry: dict[str, Any]) -> None:
                # Relative to the dense model, since candidates are evaluated on different windows.
                if entry["target_sparsity"] >= task.sparsity:
                    rewards.append(entry["reward"])
                if best := max(rewards):
                    bar.set_postfix_str(f"best perplexity {1 / best:.2f}x dense")
                on_entry(entry)

            self.evaluator.on_evaluation = bar.update
            task = SearchTask(
                plan=plan,
                budget=self.budget,
                mapping=self.mapping,
                evaluate=self.evaluator,
                is_homogeneous=partial(is_homogeneous, self.measured.model),
                curves=self.curves,
                baselines=baselines,
                warm_start=warm_start,
                on_evaluated=show,
            )
            found = processes.from_main(plan.function("method")(task))
            # Identical finalists are evaluated once.
            bar.total = bar.n
        if searches and not task.updates:
            logger.warning(
                "%d candidate evaluations are too few for policy updates besides the comparison of the "
                "finalists, so nothing was searched%s; raise search_steps, or choose method 'no-search'",
                plan.search_steps,
                " with this budget" if warm_start is not None else "",
            )
        return found

    def _without_parts(self) -> Budget:
        """Compare policies without a search that remove more and more units whole; return the budget of the best."""
        plan, windows = self.plan, np.arange(len(self.measured.data.search))[:WINDOWS]
        is_uniform = plan.method in ("uniform", "homogeneous") and self.budget.is_linear
        mapping = uniform if is_uniform else self.no_search

        def loss_of(policy: PruningPolicy) -> float:
            return float(np.nan_to_num(self.evaluator([policy], windows).mean(), nan=np.inf))

        with progress_bar(None, "Depth", "evaluation") as bar:
            self.evaluator.on_evaluation = bar.update
            return remove_whole(self.budget, plan.depth, mapping, loss_of)

    def _correct_times(self, times: dict[str, Any]) -> None:
        """Scale the measured times so that they are right for the policy without a search, which is measured whole."""
        policy = self.no_search(self.budget)
        scale = max(0, 1 - 1 / self._measured_speed(policy)) / _saved_time(times, policy)
        self.times = times | {"scale": scale}
        self.budget = self._find_budget().without(np.flatnonzero(self.budget.largest == 0))

    def _measured_speed(self, policy: PruningPolicy, tokens: int | None = None) -> float:
        measure = partial(measure_speedup, self.measured.model, policy, self.plan.workload, tokens)
        journal = self.measured.journal.part(policy.sizes, tokens)
        return journal.value("search-speedup", partial(processes.on_main, measure))

    def _reached(self, policy: PruningPolicy) -> list[dict[str, Any]]:
        """Return the record of the limits, with the measured speed, and warn if that is low for what is removed."""
        budget, measured = self.budget.record(policy), self.measured
        if (kept := self.plan.vocabulary) is not None:
            asked = kept if self.plan.asked.vocabulary == "auto" else self.plan.asked.vocabulary
            row = {"option": "vocabulary", "asked": asked, "dense": measured.model.config.vocab_size, "reached": kept}
            budget.append(row)
        if not self.times:
            return budget
        saved = _saved_time(self.times, policy)
        share = policy.sparsity * block_parameters(policy.units) / measured.model.num_parameters()
        if saved < share / 2:
            logger.warning(
                f"{100 * share:.0f} % of the parameters are removed, but only {100 * saved:.0f} % of the time of "
                f"{self.plan.workload} is saved: most of it is spent outside attention and FFNs"
            )
        for row in budget:
            if row["option"] == "speedup" and not measured.layerwise.weights.offloaded:
                row["measured"] = self._measured_speed(policy, self.plan.vocabulary)
        return budget


def _saved_time(table: dict[str, Any], policy: PruningPolicy) -> float:
    """Return the fraction of the dense model's time that a policy saves by measured times."""
    limit = speedup_limit(policy.units, table, 1)
    return 1 - 1 / limit.value(limit.cost(policy.sizes))


def search_windows(plan: Plan) -> int:
    """Return an upper bound of the windows that the search of a plan reads, in forward passes of the model."""
    search, windows = plan.search_samples, 0
    if plan.depth != "none":
        windows += min(WINDOWS, search) * max_evaluations(len(parts_of(plan.budget.units, plan.depth)))
    windows += min(WINDOWS, search) * len(plan.alternatives)
    if plan.compares_policies:
        finalists = finalist_count(plan.search_steps) + plan.candidates + 2
        windows += plan.search_steps * min(plan.update_samples, search) + finalists * search
    return windows

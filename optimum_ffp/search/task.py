"""Task of a search: maps scores to policies, evaluates them, keeps the log, and compares the finalists."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..allocation.budget import Budget
from ..allocation.mappings.curves import CurveMapping
from ..allocation.policy import PruningPolicy, Unit
from ..checkpoint.result import FoundPolicy
from ..errors import FFPError
from ..evaluation import to_perplexity
from ..plan import Plan
from .evaluator import CandidateEvaluator


# Named arrays of a trained agent, for policy transfer.
AgentState = Mapping[str, np.ndarray]
# Name of the array with the parameters of every unit of the model, saved with those of an agent.
UNIT_PARAMETERS = "unit_parameters"
# Numbers of windows after which the worse half of the finalists drops out, if there are more.
ROUNDS = (4, 8)


def halving(finalists: int, windows: int) -> list[tuple[int, int]]:
    """Return the number of finalists in every round of their comparison, and of windows that are read of each."""
    rounds, read = [], 0
    for size in ROUNDS:
        if finalists > 1 and size < windows:
            rounds.append((finalists, size - read))
            finalists, read = math.ceil(finalists / 2), size
    return [*rounds, (finalists, windows - read)]


def finalist_count(steps: int) -> int:
    """Return the number of candidate evaluations that a search reserves for its finalists."""
    return min(max(2, steps // 16), steps)


def check_agent(state: AgentState, units: Sequence[Unit], plan: Plan) -> None:
    """Raise `FFPError` if a search can't start from an agent."""
    if plan.method != "ffp":
        raise FFPError(f"method {plan.method!r} has no agent; leave out warm_start, or choose method 'ffp'")
    plan.function("agent", "check_state")(state, units)
    if not np.array_equal(state.get(UNIT_PARAMETERS, ()), _parameters(units)):
        raise FFPError(
            "the warm-start agent is for a model with other attention and FFN sizes; warm-start from a checkpoint of "
            "the same dense model"
        )


def _parameters(units: Sequence[Unit]) -> np.ndarray:
    return np.array([unit.parameters for unit in units])


@dataclass
class SearchTask:
    """Input of a search, and the log of its candidates.

    Attributes:
        plan: Options of the search.
        budget: Limits that the policy meets.
        mapping: Maps raw scores and a budget to a policy.
        evaluate: Evaluator of policies.
        is_homogeneous: Whether the dense model's class supports the sizes of a policy.
        curves: Loss curves of all units, if they were measured.
        baselines: Policies without a search to compare with the finalists, by name; not counted in `steps`.
        warm_start: State of an agent of an earlier search to start from.
        on_evaluated: Called with the record of every candidate.
        log: One record per candidate evaluation.
        best: Perplexity and policy of the best candidate at the target sparsity and full fidelity.
        updates: Number of entries of the log before the finalists were compared.
    """

    plan: Plan
    budget: Budget
    mapping: Callable[[np.ndarray, Budget], PruningPolicy]
    evaluate: CandidateEvaluator
    is_homogeneous: Callable[[PruningPolicy], bool] = lambda policy: True
    curves: CurveMapping | None = None
    baselines: Mapping[str, PruningPolicy] = field(default_factory=dict)
    warm_start: AgentState | None = None
    on_evaluated: Callable[[dict[str, Any]], Any] = lambda entry: None
    log: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, PruningPolicy] | None = None
    updates: int = 0

    @property
    def steps(self) -> int:
        """Maximum number of candidate evaluations."""
        return self.plan.search_steps

    @property
    def max_samples(self) -> int:
        """Number of search windows at full fidelity."""
        return len(self.evaluate.dense_losses)

    @property
    def actions(self) -> int:
        """Number of scores per policy."""
        return len(self.budget.units)

    @property
    def sparsity(self) -> float:
        """Target sparsity: exact for the option of that name, but for the last digits."""
        return round(self.budget.sparsity, 6)

    @property
    def finalists(self) -> int:
        """Number of evaluations reserved for comparing the best candidates on more windows."""
        return finalist_count(self.steps)

    def map_scores(self, scores: np.ndarray, sparsity: float | None = None) -> PruningPolicy:
        """Return the policy of raw scores that meets the budget, or the budget relaxed to a lower sparsity."""
        return self.mapping(scores, self.budget if sparsity is None else self.budget.relaxed(sparsity / self.sparsity))

    def windows(self, samples: int, offset: int = 0) -> np.ndarray:
        """Return the indices of `samples` consecutive windows from `offset`, modulo their number, at most all once."""
        if samples >= self.max_samples:
            return np.arange(self.max_samples)
        return (offset + np.arange(samples)) % self.max_samples

    def excess_losses(
        self, policies: Sequence[PruningPolicy], windows: np.ndarray, sparsity: float | None = None
    ) -> np.ndarray:
        """Return losses minus that of the dense model on the same windows, infinite if perplexity is not finite.

        Only candidates on all windows can become the best of the search, unless they have a lower `sparsity`.
        """
        return self._record(policies, self.evaluate(policies, windows).mean(1), windows, sparsity)

    def size_gradients(self, policy: PruningPolicy, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the size gradients of a candidate at the target sparsity, on the windows of the given indices.

        They are the first-order changes of the loss when one unit at a time changes to its smaller and to its larger
        size of `policy.neighbors()`, in nats per token, each of shape `[windows, units]`.
        """
        gradients = self.evaluate.size_gradients(policy, windows)
        self._record([policy], gradients.losses.mean(keepdims=True), windows)
        return gradients.down, gradients.up

    def _record(
        self,
        policies: Sequence[PruningPolicy],
        losses: np.ndarray,
        windows: np.ndarray,
        sparsity: float | None = None,
    ) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            perplexities = np.exp(losses)
        excess = np.where(np.isfinite(perplexities), losses - self.evaluate.dense_losses[windows].mean(), np.inf)
        final = sparsity is None and len(windows) == self.max_samples
        for policy, loss, perplexity in zip(policies, excess, perplexities):
            finite = bool(np.isfinite(loss))
            if final and finite and (self.best is None or perplexity < self.best[0]):
                self.best = float(perplexity), policy
            entry = {
                "evaluation": len(self.log) + 1,
                "target_sparsity": self.sparsity if sparsity is None else sparsity,
                "sparsity": policy.sparsity,
                "samples": len(windows),
                "perplexity": float(perplexity) if finite else None,
                "reward": float(np.exp(-loss)),
                "final": final,
                "best_perplexity": self.best[0] if self.best else None,
            }
            self.log.append(entry)
            self.on_evaluated(entry)
        return excess

    def conclude(self, finalists: Sequence[np.ndarray], agent: AgentState | None = None) -> FoundPolicy:
        """Compare the policies of raw scores and the baselines, as `choose` does.

        Scores have the shape `[actions]`, or `[units, parts]` for parts of the loss curves. The result has the state
        of the agent for policy transfer.
        """
        found = self.choose([*dict.fromkeys(self.map_scores(scores) for scores in finalists)])
        return replace(found, agent=agent and {**agent, UNIT_PARAMETERS: _parameters(self.budget.units)})

    def choose(self, policies: Sequence[PruningPolicy]) -> FoundPolicy:
        """Compare policies and baselines at the target sparsity, and return the best one.

        They are compared on four windows, then on eight and then on all. The worse half drops out each time, so that
        only the better ones, and always the result, are measured on all windows.

        Raises:
            FFPError: If no candidate has a finite perplexity.
        """
        self.updates = len(self.log)
        baselines = [policy for policy in dict.fromkeys(self.baselines.values()) if policy not in policies]
        excess = self._compare([*policies, *baselines] if self.plan.fall_back else policies)
        best = self.best
        if baselines and not self.plan.fall_back:
            excess |= self._compare(baselines)
        if best is None:
            raise FFPError(
                "no candidate has a finite perplexity; remove less, or choose dtype float32 or bfloat16 if it is "
                "float16"
            )
        perplexity, policy = best
        dense = float(self.evaluate.dense_losses.mean())
        perplexities = {name: to_perplexity(dense + float(excess[one])) for name, one in self.baselines.items()}
        return FoundPolicy(policy, perplexity, self.log, perplexities)

    def _compare(self, policies: Sequence[PruningPolicy]) -> dict[PruningPolicy, float]:
        """Return losses minus that of the dense model on the windows that each policy was measured on."""
        excess: dict[PruningPolicy, float] = {}
        losses, first = np.empty((len(policies), 0)), self.max_samples
        for _, read in halving(len(policies), self.max_samples):
            # The last ones first: some searches choose their finalists on the first ones.
            first -= read
            losses = np.hstack([self.evaluate(policies, np.arange(first, first + read)), losses])
            means = losses.mean(1)
            order = np.argsort(means, kind="stable")
            kept, out = np.split(order, [math.ceil(len(policies) / 2) if first else 0])
            dropped, windows = [policies[index] for index in out], np.arange(first, self.max_samples)
            excess |= zip(dropped, self._record(dropped, means[out], windows))
            policies, losses = [policies[index] for index in kept], losses[kept]
        return excess

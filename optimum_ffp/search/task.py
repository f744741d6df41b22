"""The input and the result of a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..allocation.mappings.curves import CurveMapping
from ..allocation.policy import PruningPolicy, Unit
from ..analysis.size_gradients import SizeGradients
from ..errors import FFPError
from ..options import GRADIENT_COST


# Arrays by name: what an agent has learned, for policy transfer.
AgentState = Mapping[str, np.ndarray]


def finalist_count(steps: int) -> int:
    """Of this many candidate evaluations, those that a search on few windows keeps for its finalists."""
    return min(max(2, steps // 16), steps)


class Evaluate(Protocol):
    """Losses of policies on some of the search windows, shape `[policies, windows]`, and the dense model's on all."""

    dense_losses: np.ndarray

    def __call__(self, policies: Sequence[PruningPolicy], windows: np.ndarray) -> np.ndarray:
        """Losses of the policies on the windows with these indices, nats a token."""

    def size_gradients(self, policy: PruningPolicy, windows: np.ndarray) -> SizeGradients:
        """Losses of one policy on these windows and their size gradients, by a backward pass."""


@dataclass
class SearchTask:
    """One search: from scores to policies, from policies to losses, and how much may be spent.

    Attributes:
        units: What a policy gives sizes to; it is made from one score per unit.
        map_scores: Raw scores and a sparsity to a policy that meets it.
        evaluate: Losses of policies.
        sparsity: The target.
        steps: Candidate evaluations that may be spent.
        max_samples: Windows at full fidelity.
        curves: The loss curves of all units, if there are any.
        on_evaluated: Called with the records of every batch of candidates, the evaluations that they count for, and
            the best perplexity so far.
        log: One record per candidate evaluation.
        best: Perplexity and policy of the best candidate at the target and full fidelity.
    """

    units: Sequence[Unit]
    map_scores: Callable[[np.ndarray, float], PruningPolicy]
    evaluate: Evaluate
    sparsity: float
    steps: int
    max_samples: int
    curves: CurveMapping | None = None
    on_evaluated: Callable[[list[dict[str, Any]], int, float], Any] = lambda entries, cost, best: None
    log: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, PruningPolicy] | None = None

    @property
    def actions(self) -> int:
        """Number of scores that a policy is made from."""
        return len(self.units)

    @property
    def finalists(self) -> int:
        """Evaluations that a search on few windows keeps for comparing its best candidates on all of them."""
        return finalist_count(self.steps)

    def windows(self, samples: int, offset: int = 0) -> np.ndarray:
        """Indices of `samples` windows from `offset` on, around the end; of all, once each, where there are fewer."""
        if samples >= self.max_samples:
            return np.arange(self.max_samples)
        return (offset + np.arange(samples)) % self.max_samples

    def rewards(self, policies: Sequence[PruningPolicy], sparsity: float, windows: np.ndarray) -> np.ndarray:
        """Rewards `R = PPL_dense / PPL(policy)` of a batch of candidates (Eq. 2), 0 where PPL is not finite.

        Args:
            policies: The candidates.
            sparsity: The sparsity that they were made for.
            windows: Indices of the windows that they are evaluated on.
        """
        with np.errstate(over="ignore"):
            return np.exp(-self.excess_losses(policies, sparsity, windows))

    def excess_losses(self, policies: Sequence[PruningPolicy], sparsity: float, windows: np.ndarray) -> np.ndarray:
        """Losses above that of the dense model on the same windows, infinite where perplexity is not finite.

        A candidate at the final sparsity and full fidelity may become the best of the search; no other may.
        """
        return self._account(policies, self.evaluate(policies, windows).mean(1), sparsity, windows)

    def size_gradients(self, policy: PruningPolicy, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Changes of a candidate's loss with the size of every unit, at the target sparsity.

        Args:
            policy: The candidate.
            windows: Indices of the windows that it is evaluated on, in a forward and a backward pass.

        Returns:
            First-order changes for one unit at a time going to its smaller and to its larger size of
            `policy.neighbours()`, nats a token, each of shape `[windows, units]`.
        """
        found = self.evaluate.size_gradients(policy, windows)
        self._account([policy], found.losses.mean(keepdims=True), self.sparsity, windows, GRADIENT_COST)
        return found.down, found.up

    def _account(
        self,
        policies: Sequence[PruningPolicy],
        losses: np.ndarray,
        sparsity: float,
        windows: np.ndarray,
        cost: int = 1,
    ) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            perplexities = np.exp(losses)
        excess = np.where(np.isfinite(perplexities), losses - self.evaluate.dense_losses[windows].mean(), np.inf)
        final = sparsity == self.sparsity and len(windows) == self.max_samples
        for policy, loss, perplexity in zip(policies, excess, perplexities):
            finite = bool(np.isfinite(loss))
            if final and finite and (self.best is None or perplexity < self.best[0]):
                self.best = float(perplexity), policy
            self.log.append(
                {
                    "evaluation": len(self.log) + 1,
                    "target_sparsity": float(sparsity),
                    "sparsity": policy.sparsity,
                    "samples": len(windows),
                    "perplexity": float(perplexity) if finite else None,
                    "reward": float(np.exp(-loss)),
                    "final": final,
                    "best_perplexity": self.best[0] if self.best else None,
                }
            )
        best = self.best[0] if self.best else float(np.min(perplexities))
        self.on_evaluated(self.log[-len(policies) :], cost * len(policies), best)
        return excess

    def conclude(self, finalists: Sequence[np.ndarray], agent: AgentState | None = None) -> "SearchResult":
        """Compares finalists at the target on all windows; the best of them is the result.

        Args:
            finalists: Raw actions, each of shape `[actions]`.
            agent: State of the agent, for policy transfer.

        Raises:
            FFPError: If none of them has a finite perplexity.
        """
        policies = [self.map_scores(scores, self.sparsity) for scores in finalists]
        self.excess_losses(policies, self.sparsity, self.windows(self.max_samples))
        if self.best is None:
            raise FFPError(
                f"no candidate at sparsity {self.sparsity:g} has a finite perplexity; lower sparsity or raise "
                "search_steps"
            )
        return SearchResult(self.best[1], self.best[0], self.log, agent)


@dataclass
class SearchResult:
    """The best policy seen at the final sparsity and full fidelity.

    Attributes:
        policy: The policy.
        perplexity: Its perplexity on all search windows.
        log: One record per candidate evaluation.
        agent: State of the agent, if the method has one.
    """

    policy: PruningPolicy
    perplexity: float
    log: list[dict[str, Any]]
    agent: AgentState | None = None

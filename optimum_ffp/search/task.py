"""What a search is given and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..policy import PruningPolicy


class Evaluate(Protocol):
    """Losses of policies on the first `samples` windows, shape `[policies, samples]`, and the dense model's."""

    dense_losses: np.ndarray

    def __call__(self, policies: Sequence[PruningPolicy], samples: int | None = None) -> np.ndarray: ...


@dataclass
class SearchTask:
    """One search: from scores to policies, from policies to losses, and how much may be spent.

    Attributes:
        actions: Number of scores that a policy is made from.
        map_scores: Raw scores and a sparsity to a policy that meets it.
        evaluate: Losses of policies.
        sparsity: The target.
        steps: Candidate evaluations that may be spent.
        max_samples: Windows at full fidelity.
        seed: Of everything random.
        on_evaluated: Called with the number of candidates of every batch and the best perplexity so far.
        log: One record a candidate evaluation.
    """

    actions: int
    map_scores: Callable[[np.ndarray, float], PruningPolicy]
    evaluate: Evaluate
    sparsity: float
    steps: int
    max_samples: int
    seed: int
    on_evaluated: Callable[[int, float], Any] = lambda count, best: None
    log: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, PruningPolicy] | None = None

    def rewards(self, scores: np.ndarray, sparsity: float, samples: int) -> np.ndarray:
        """Rewards of a batch of candidates, `R = PPL_dense / PPL(policy)` (Eq. 2), 0 where PPL is not finite.

        A candidate at the final sparsity and full fidelity may become the best of the search; no other may.

        Args:
            scores: Raw actions, shape `[candidates, actions]`.
            sparsity: The sparsity that they are mapped to.
            samples: Windows that they are evaluated on.
        """
        policies = [self.map_scores(row, sparsity) for row in scores]
        return self.policy_rewards(policies, sparsity, samples)

    def policy_rewards(self, policies: Sequence[PruningPolicy], sparsity: float, samples: int) -> np.ndarray:
        """As `rewards`, for policies that need no mapping."""
        losses = self.evaluate(policies, samples).mean(1)
        with np.errstate(over="ignore", invalid="ignore"):
            perplexities = np.exp(losses)
            ratios = np.exp(self.evaluate.dense_losses[:samples].mean() - losses)
        rewards = np.where(np.isfinite(perplexities), ratios, 0.0)
        final = sparsity == self.sparsity and samples == self.max_samples
        for policy, reward, perplexity in zip(policies, rewards, perplexities):
            if final and reward > 0 and (self.best is None or perplexity < self.best[0]):
                self.best = float(perplexity), policy
            self.log.append(
                {
                    "evaluation": len(self.log) + 1,
                    "target_sparsity": float(sparsity),
                    "sparsity": policy.sparsity,
                    "samples": samples,
                    "perplexity": float(perplexity) if np.isfinite(perplexity) else None,
                    "reward": float(reward),
                    "final": final,
                    "best_perplexity": self.best[0] if self.best else None,
                }
            )
        self.on_evaluated(len(policies), self.best[0] if self.best else float(np.min(perplexities)))
        return rewards


@dataclass
class SearchResult:
    """The best policy seen at the final sparsity and full fidelity.

    Attributes:
        policy: The policy.
        perplexity: Its perplexity on all search windows; `None` if nothing was evaluated.
        log: One record a candidate evaluation.
        agent: Weights of the trained agent by name, if the method has one.
    """

    policy: PruningPolicy
    perplexity: float | None
    log: list[dict[str, Any]]
    agent: dict[str, np.ndarray] | None = None

"""Evaluation of candidate policies on the search windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from ..allocation.policy import PruningPolicy
from ..analysis.measurements import policy_losses
from ..analysis.size_gradients import SizeGradients, measure_size_gradients
from ..compression.sorted_model import SortedModel
from ..config.prune import GRADIENT_COST
from ..utils.resume import Journal


@dataclass
class CandidateEvaluator:
    """Evaluates policies on views of one sorted model.

    All candidates of a call are evaluated on the same windows, so that differences are paired. Searches share entries
    of the journal.

    Attributes:
        sorted_model: The model with its groups sorted.
        dense_losses: Losses of the dense model on all search windows, in nats per token, shape `[windows]`; empty if
            no policies are compared.
        windows: Search windows, token ids of shape `[windows, window length]`.
        compensated: Whether candidates are evaluated after ridge regression.
        batch_size: Windows per forward pass.
        dtype: Autocast dtype, such as `torch.bfloat16`; `None` for the model's own.
        journal: Saves the losses.
        on_evaluation: Called after every policy with its cost in evaluations.
    """

    sorted_model: SortedModel
    dense_losses: np.ndarray
    windows: torch.Tensor
    compensated: bool = False
    batch_size: int = 1
    dtype: torch.dtype | None = None
    journal: Journal = field(default_factory=Journal)
    on_evaluation: Callable[[int], Any] = lambda cost: None

    def __post_init__(self) -> None:
        self.journal = self.journal.part(self.windows.tolist(), self.compensated, str(self.dtype))

    def __call__(self, policies: Sequence[PruningPolicy], windows: np.ndarray) -> np.ndarray:
        """Return losses of policies on the windows of the given indices, in nats per token, `[policies, windows]`."""
        chosen, measured = self.windows[torch.from_numpy(windows)], {}
        journals = {policy: self._journal_of(policy, windows) for policy in policies}

        def measure(policy: PruningPolicy) -> list[float]:
            # One by one, so that every result is saved; but together if weights are offloaded.
            if policy not in measured:
                batch = [policy]
                if not self.sorted_model.layerwise.weights.resident:
                    batch = [missing for missing, journal in journals.items() if not journal.has("search-losses")]
                losses = policy_losses(
                    self.sorted_model,
                    batch,
                    chosen,
                    compensated=self.compensated,
                    batch_size=self.batch_size,
                    dtype=self.dtype,
                )
                measured.update(zip(batch, losses.tolist()))
            return measured[policy]

        for policy, journal in journals.items():
            measured[policy] = journal.value("search-losses", partial(measure, policy))
            self.on_evaluation(1)
        return np.array([measured[policy] for policy in policies])

    def size_gradients(self, policy: PruningPolicy, windows: np.ndarray) -> SizeGradients:
        """Return the losses of one policy on the windows of the given indices, and their size gradients."""

        def measure() -> list[list]:
            chosen = self.windows[torch.from_numpy(windows)]
            gradients = measure_size_gradients(self.sorted_model, policy, chosen, self.dtype)
            return [gradients.losses.tolist(), gradients.down.tolist(), gradients.up.tolist()]

        entry = self._journal_of(policy, windows).value("search-gradients", measure)
        self.on_evaluation(GRADIENT_COST)
        return SizeGradients(*map(np.array, entry))

    def _journal_of(self, policy: PruningPolicy, windows: np.ndarray) -> Journal:
        return self.journal.part(policy.sizes, windows.tolist())

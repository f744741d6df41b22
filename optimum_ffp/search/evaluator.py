"""Evaluation of candidate policies on the search windows."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ..allocation.policy import PruningPolicy
from ..analysis.measurements import policy_losses
from ..analysis.size_gradients import SizeGradients, measure_size_gradients
from ..compression.sorted_model import SortedModel
from ..utils.resume import Journal


class CandidateEvaluator:
    """Evaluates policies on views of one sorted model.

    All candidates of a call are evaluated on the same windows, so that differences are paired. Journal entries are
    keyed by everything they depend on, so that searches share them.

    Args:
        sorted_model: The model with its groups sorted.
        dense_losses: Losses of the dense model on all search windows, in nats per token, shape `[windows]`.
        windows: Search windows, token ids of shape `[windows, window length]`.
        compensated: Whether candidates are evaluated after ridge regression.
        batch_size: Windows per forward pass.
        dtype: Autocast dtype, such as `torch.bfloat16`; `None` for the model's own.
        journal: Saves the losses.

    Attributes:
        evaluations: Number of candidate evaluations.
        non_finite: Number of evaluations with a loss that is not finite.
    """

    def __init__(
        self,
        sorted_model: SortedModel,
        dense_losses: np.ndarray,
        windows: torch.Tensor,
        compensated: bool = False,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        journal: Journal | None = None,
    ):
        self.sorted_model, self.dense_losses, self.windows = sorted_model, dense_losses, windows
        self.compensated, self.batch_size, self.dtype = compensated, batch_size, dtype
        self.counter = sorted_model.layerwise.counter
        self.journal = (journal or Journal()).part(windows.tolist(), compensated, str(dtype))
        self.evaluations = self.non_finite = 0

    def __call__(self, policies: Sequence[PruningPolicy], windows: np.ndarray) -> np.ndarray:
        """Return losses of policies on the windows of the given indices, in nats per token, `[policies, windows]`."""
        losses = np.array(self._losses(policies, windows))
        self.evaluations += len(policies)
        self.non_finite += int((~np.isfinite(losses)).any(1).sum())
        return losses

    def size_gradients(self, policy: PruningPolicy, windows: np.ndarray) -> SizeGradients:
        """Return the losses of one policy on the windows of the given indices, and their size gradients."""
        chosen = self.windows[torch.from_numpy(windows)]

        def measure() -> list[list]:
            found = measure_size_gradients(self.sorted_model, policy, chosen, self.dtype)
            return [found.losses.tolist(), found.down.tolist(), found.up.tolist()]

        found = SizeGradients(
            *map(np.array, self.counter.value(self._journal_of(policy, windows), "size_gradients", measure))
        )
        self.evaluations += 1
        self.non_finite += int(not np.isfinite(found.losses).all())
        return found

    def _journal_of(self, policy: PruningPolicy, windows: np.ndarray) -> Journal:
        return self.journal.part(policy.sizes, windows.tolist())

    def _losses(self, policies: Sequence[PruningPolicy], windows: np.ndarray) -> list[list[float]]:
        chosen = self.windows[torch.from_numpy(windows)]
        journals = [self._journal_of(one, windows) for one in policies]
        found: dict[int, list[float]] = {}

        def measure(number: int) -> list[float]:
            # One by one, so that what is finished is saved; but together where weights have to be brought for them.
            if number not in found:
                together = [number]
                if not self.sorted_model.layerwise.weights.resident:
                    together = [other for other, journal in enumerate(journals) if not journal.has("losses")]
                measured = policy_losses(
                    self.sorted_model,
                    [policies[other] for other in together],
                    chosen,
                    compensated=self.compensated,
                    batch_size=self.batch_size,
                    dtype=self.dtype,
                )
                found.update(zip(together, measured.tolist()))
            return found[number]

        return [self.counter.value(one, "losses", partial(measure, number)) for number, one in enumerate(journals)]

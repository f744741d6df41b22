"""What candidate policies are worth: their loss on the search windows, paired with the dense model's."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..allocation.policy import PruningPolicy
from ..analysis.size_gradients import SizeGradients, measure_size_gradients
from ..compression.sorted_model import SortedModel
from ..errors import FFPError
from ..evaluation import to_perplexity, window_losses
from ..options import GRADIENT_COST
from ..utils.batch_size import with_halving_batches
from ..utils.precision import computing_in
from ..utils.resume import Journal


class CandidateEvaluator:
    """Evaluates policies on views of one nested model.

    All candidates of a call see the same windows, and the dense model's losses on them are cached, so that what is
    compared are paired differences. What is kept in the journal goes by all that it depends on, so that searches may
    share it, whatever they were begun with.

    Args:
        sorted_model: The model with its groups sorted.
        windows: Search windows, token ids of shape `[windows, window length]`.
        compensated: Whether candidates are evaluated after ridge regression.
        batch_size: Windows a forward pass.
        dtype: Type to compute in (`torch.bfloat16` runs under autocast); `None` for the model's own.
        journal: Keeps the losses.
        dense_losses: Losses of the dense model on all windows, if another search has measured them.

    Attributes:
        evaluations: Candidate evaluations so far.
        tokens: Tokens that those evaluations read; three times those of a forward and backward pass.
        non_finite: How many of them had a loss that is not finite.
    """

    def __init__(
        self,
        sorted_model: SortedModel,
        windows: torch.Tensor,
        compensated: bool = False,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        journal: Journal | None = None,
        dense_losses: np.ndarray | None = None,
    ):
        self.sorted_model, self.windows, self.compensated, self.batch_size = (
            sorted_model,
            windows,
            compensated,
            batch_size,
        )
        self.dtype = dtype
        self.journal = (journal or Journal()).part(windows.tolist(), compensated, batch_size, str(dtype))
        self.evaluations = self.tokens = self.non_finite = 0
        self._dense = dense_losses

    @property
    def dense_losses(self) -> np.ndarray:
        """Losses of the dense model, nats a token, shape `[windows]`. Measured once, when first asked for.

        Raises:
            FFPError: If its perplexity isn't finite.
        """
        if self._dense is None:
            self._dense = self._kept_losses(PruningPolicy.dense(self.sorted_model.units), np.arange(len(self.windows)))
            if not math.isfinite(to_perplexity(float(self._dense.mean()))):
                raise FFPError(
                    "the perplexity of the dense model is not finite on the search windows; try search_dtype model, a "
                    "dtype of more bits, or another dataset, or download the model anew"
                )
        return self._dense

    def __call__(self, policies: Sequence[PruningPolicy], windows: np.ndarray) -> np.ndarray:
        """Losses of the policies on the windows with these indices, nats a token, shape `[policies, windows]`."""
        losses = np.array([self._kept_losses(policy, windows) for policy in policies])
        self.evaluations += len(policies)
        self.tokens += losses.size * self.windows.shape[1]
        self.non_finite += int((~np.isfinite(losses)).any(1).sum())
        return losses

    def slopes(self, policy: PruningPolicy, windows: np.ndarray) -> SizeGradients:
        """Losses of one policy on the windows with these indices and how they change with the size of every unit.

        A forward and a backward pass, which counts as three times its tokens.
        """
        chosen = self.windows[torch.from_numpy(windows)]

        def measure() -> list[list]:
            found = with_halving_batches(
                lambda _: measure_size_gradients(self.sorted_model, policy, chosen, self.dtype), 1
            )
            return [found.losses.tolist(), found.down.tolist(), found.up.tolist()]

        found = SizeGradients(*map(np.array, self._journal_of(policy, windows).value("slopes", measure)))
        self.evaluations += 1
        self.tokens += GRADIENT_COST * chosen.numel()
        self.non_finite += int(not np.isfinite(found.losses).all())
        return found

    def _journal_of(self, policy: PruningPolicy, windows: np.ndarray) -> Journal:
        return self.journal.part(policy.sizes, windows.tolist())

    def _kept_losses(self, policy: PruningPolicy, windows: np.ndarray) -> np.ndarray:
        chosen = self.windows[torch.from_numpy(windows)]
        journal = self._journal_of(policy, windows)
        return np.array(journal.value("losses", lambda: self._losses(policy, chosen).tolist()))

    def _losses(self, policy: PruningPolicy, windows: torch.Tensor) -> np.ndarray:
        outputs = self.sorted_model.compensated(policy) if self.compensated else None
        with self.sorted_model.applied(policy, outputs) as model, computing_in(model.device, self.dtype):
            return with_halving_batches(lambda size: window_losses(model, windows, size), self.batch_size).numpy()

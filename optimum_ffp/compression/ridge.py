"""Ridge regression that compensates the kept groups for the removed ones (Eq. 6 and 7 of the paper)."""

from collections.abc import Iterable

import torch

from ..utils.cholesky import factorize, ridge_damping


class PrefixRidge:
    """Compensated weights of every prefix of a unit from one Cholesky factor.

    Prefixes are nested, so with `H + λI = L Lᵀ` in the sorted order the solution of Eq. 6-7 for the first `k` columns
    is `W'_k = W_R + (W_P L_PR) L_RR⁻¹`: one triangular solve instead of a factorization.

    Args:
        factor: `L`, float32, shape `[features, features]`. It stays on its device, and is copied to that of a weight
            on use: the factors of all units are more than half as large as the model.
    """

    def __init__(self, factor: torch.Tensor):
        self.factor = factor

    @classmethod
    def of(
        cls,
        gram: torch.Tensor,
        ridge_lambda: float = 0.01,
        order: torch.Tensor | None = None,
    ) -> "PrefixRidge":
        """Factor a Gram matrix on its device.

        Args:
            gram: `H = XᵀX / n`, shape `[features, features]`.
            ridge_lambda: λ relative to `mean(diag H)` (the paper: 0.01).
            order: Columns from most to least important, shape `[features]`; `None` if `H` is in the sorted order.
        """
        # Factored in float64, stored in float32: the size of the Gram matrix, and accurate enough for a solve.
        factor = factorize(gram, ridge_damping(gram, ridge_lambda), order)
        # Contiguous, as if read from a file: products depend on the memory layout in the last digits.
        return cls(factor.to(torch.float32, memory_format=torch.contiguous_format))

    def compensated(self, weight: torch.Tensor, kept: int) -> torch.Tensor:
        """Return `W'_R` for the first `kept` columns, shape `[out_features, kept]`, in the dtype of the weight.

        `weight` has its columns sorted by importance, shape `[out_features, features]`.
        """
        if kept == weight.shape[1]:
            return weight
        # Moved before it is sliced: a slice of pinned memory would be copied to pageable memory first.
        factor = self.factor.to(weight.device)[:, :kept]
        removed = weight[:, kept:].float() @ factor[kept:]
        correction = torch.linalg.solve_triangular(factor[:kept], removed, upper=False, left=False)
        return (weight[:, :kept].float() + correction).to(weight.dtype)

    def components(self, weight: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the components by which the compensated outputs of `stop` and of `start` columns differ.

        With `V = W L` and `z = L⁻¹ x`, where the first `k` entries of `z` depend only on the first `k` inputs, the
        output of a prefix is `W'_k x = Σ_{j<k} V_j z_j`. So `W'_stop x - W'_start x = V_{start:stop} z_{start:stop}`.

        Returns:
            `V_{start:stop}`, shape `[out_features, stop - start]`, and `M` with `z_{start:stop} = Mᵀ x`, shape
            `[stop, stop - start]`, both float32.
        """
        factor = self.factor.to(weight.device)[:, :stop]
        selected = torch.zeros(stop, stop - start, device=factor.device)
        selected.diagonal(-start).fill_(1)
        return weight.float() @ factor[:, start:], torch.linalg.solve_triangular(factor[:stop].T, selected, upper=True)


def factor_bytes(widths: Iterable[int]) -> int:
    """Return the bytes of the ridge factors of units with these numbers of channels."""
    return 4 * sum(width**2 for width in widths)

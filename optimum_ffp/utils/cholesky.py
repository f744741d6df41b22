"""Cholesky factors of measured Gram matrices, which may be rank-deficient or zero."""

from functools import cache

import torch

from ..errors import FFPError
from .device_memory import free_device_memory


# Peak of temporaries for ordering and factoring a unit, in bytes per entry of its Gram matrix: a float64 copy, a
# float32 copy, and as much again for the output projection.
ALGEBRA_BYTES = 20
ROWS = 1024
# Rounding error of float32 sums, relative to the mean diagonal.
ROUNDING = torch.finfo(torch.float32).eps
# Mean squares below this are treated as zero input.
NO_INPUT = 1e-30
# Number of attempts, each with ten times the previous damping: from rounding errors to beyond the largest eigenvalue.
ATTEMPTS = 16


def algebra_device(device: torch.device, features: int) -> torch.device:
    """Return the device for ordering, factoring and fitting a unit, whose output projection has `features` columns.

    It is that of its layer, or the CPU if that lacks memory or float64 (MPS).
    """
    free = free_device_memory(device)
    fits = free is None or free >= ALGEBRA_BYTES * features**2
    return device if fits and _has_float64(device) else torch.device("cpu")


@cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def ridge_damping(gram: torch.Tensor, ridge_lambda: float) -> float:
    """Return the damping that a ridge regression adds to the diagonal of its Gram matrix `H`.

    It is λ times the mean diagonal, at least the rounding error of `H`, and positive if `H` is zero. The shape of `H`
    is `[features, features]`.
    """
    mean = float(gram.diagonal().cpu().double().mean())
    return max(ridge_lambda * mean, ROUNDING * (mean if mean > NO_INPUT else 1.0))


def factorize(gram: torch.Tensor, damping: float, order: torch.Tensor | None = None) -> torch.Tensor:
    """Return the Cholesky factor of `H + d I`, float64, column-major, shape `[features, features]`.

    Args:
        gram: `H`. It is not changed.
        damping: `d`, multiplied by ten while rounding errors make `H + d I` indefinite.
        order: Order of rows and columns to factor `H` in, shape `[features]`; its own if `None`.

    Raises:
        FFPError: If the matrix can't be factored because it is not finite.
    """
    failed = torch.empty((), dtype=torch.int32, device=gram.device)
    for attempt in range(ATTEMPTS):
        # In place, since a float64 matrix takes 1 GB for the largest unit of a 7B model. LAPACK is column-major.
        factor = _ordered(gram, order).mT
        factor.diagonal().add_(damping * 10**attempt)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not failed:
            return factor
    raise FFPError("a Gram matrix can't be factored: it holds values that are not finite")


def _ordered(gram: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return a copy in float64, with rows and columns in an order."""
    if order is None:
        return gram.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    matrix = torch.empty_like(gram, dtype=torch.float64, memory_format=torch.contiguous_format)
    order = order.to(gram.device)
    for copy, rows in zip(matrix.split(ROWS), order.split(ROWS)):
        copy.copy_(gram[rows][:, order])
    return matrix


def check_finite(squares: torch.Tensor, label: str) -> None:
    """Raise `FFPError` if measured sums of squares, which the `label` describes, are not all finite.

    The diagonal suffices for a Gram matrix, since no other entry is larger.
    """
    if not torch.isfinite(squares).all():
        raise FFPError(
            f"{label} is not finite: it exceeds the range of the model's dtype, or weights before it are corrupt; "
            "load the model with dtype float32 or bfloat16 (--dtype float32)"
        )

"""Cholesky factors of matrices as they are measured: of full rank, singular, or zero."""

import torch

from ..errors import FFPError


# What sums in float32 round off, relative to the mean diagonal.
ROUNDING = torch.finfo(torch.float32).eps
# Mean squares below this are no input, but what float32 makes of zero.
NO_INPUT = 1e-30
# Each with ten times the damping of the one before: from rounding errors to more than the largest eigenvalue.
ATTEMPTS = 16


def ridge_damping(gram: torch.Tensor, ridge_lambda: float, relative: bool = True) -> float:
    """What a ridge regression adds to the diagonal of its Gram matrix.

    Args:
        gram: `H`, shape `[features, features]`.
        ridge_lambda: λ.
        relative: λ is a multiple of `mean(diag H)`; otherwise it is absolute.

    Returns:
        λ, but at least what the sums in `H` are rounded by, and more than 0 where `H` is zero.
    """
    mean = float(gram.diagonal().double().mean())
    return max(ridge_lambda * (mean if relative else 1.0), ROUNDING * (mean if mean > NO_INPUT else 1.0))


def factorise(gram: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """The Cholesky factor of `H + d I`.

    Args:
        gram: `H`, float64, shape `[features, features]`. Its diagonal is changed and changed back, rather than that of
            a copy: of the largest unit of a 7B model each such matrix is 1 GB.
        damping: `d`. Where rounding has left `H` too indefinite for it, ten times as much is tried, and so on.

    Returns:
        The factor, shape `[features, features]`, and the `d` that it is of.

    Raises:
        FFPError: If there is none: the matrix is not finite.
    """
    diagonal = gram.diagonal().clone()
    try:
        for attempt in range(ATTEMPTS):
            gram.diagonal().copy_(diagonal + damping * 10**attempt)
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not failed:
                return factor, damping * 10**attempt
    finally:
        gram.diagonal().copy_(diagonal)
    raise FFPError("a Gram matrix can't be factored: it holds values that are not finite")


def check_finite(squares: torch.Tensor, what: str) -> None:
    """Makes sure of what was measured, before anything is solved with it.

    Args:
        squares: Sums of squares. Of a sum of outer products the diagonal will do: no other entry is larger.
        what: What they are of, for the message.

    Raises:
        FFPError: If any is NaN or infinite.
    """
    if not torch.isfinite(squares).all():
        raise FFPError(
            f"{what} is not finite: it is too large for the model's dtype, or there are damaged weights before it; "
            "load the model with dtype float32 or bfloat16 (--dtype float32)"
        )

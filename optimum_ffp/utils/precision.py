"""What to compute in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


def autocast_dtype(model: PreTrainedModel, choice: str) -> torch.dtype | None:
    """What to compute in for a `search_dtype`: bfloat16 if it is `"auto"` and the hardware multiplies that natively.

    Returns:
        The type for autocast, or `None` for the model's own.
    """
    if choice != "auto" or model.dtype != torch.float32:
        return None
    if model.device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        instructions = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        native = model.device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in instructions)
    return torch.bfloat16 if native else None


def computing_in(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a type, or for `None` none: operations compute in the type of what they are given."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def float32_products(*factors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The factors of matrix products in float32, whatever autocast says.

    Where all of them are bfloat16 to begin with, the hardware may multiply them as such: it sums in float32 all the
    same, so nothing is lost, and a product costs a third.
    """
    before = torch.get_float32_matmul_precision()
    exact_as_bfloat16 = all(factor.dtype == torch.bfloat16 for factor in factors)
    try:
        torch.set_float32_matmul_precision("medium" if exact_as_bfloat16 else "highest")
        with computing_in(factors[0].device, None):
            yield tuple(factor.float() for factor in factors)
    finally:
        torch.set_float32_matmul_precision(before)

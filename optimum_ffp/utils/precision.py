"""Compute dtype and autocast."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from timeit import timeit
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PretrainedConfig, PreTrainedModel


Model = TypeVar("Model", bound=nn.Module)
SHORT_DTYPES = torch.bfloat16, torch.float16
# A CPU computes in a 16-bit dtype if its products take less than this share of the time of float32.
FAST_SHARE = 2 / 3


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as `"bfloat16"`."""
    return str(dtype).removeprefix("torch.")


def autocast_dtype(model: PreTrainedModel, choice: str) -> torch.dtype | None:
    """Return the autocast dtype for a `search_dtype`; `None` for the model's own.

    With `"auto"`, that is bfloat16 for a float32 model if the hardware multiplies bfloat16 faster.
    """
    is_auto = choice == "auto" and model.dtype == torch.float32
    return torch.bfloat16 if is_auto and has_fast_matmul(model.device, torch.bfloat16) else None


def has_fast_matmul(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a CUDA GPU or the CPU multiplies a 16-bit dtype faster than float32."""
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_fast_matmul(dtype)


def computes_in_bfloat16(device: torch.device, choice: bool | None) -> bool:
    """Return whether to train in bfloat16; without a choice, only if the hardware is faster at it."""
    return has_fast_matmul(device, torch.bfloat16) if choice is None else choice


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in with weights of a dtype."""
    # CPUs without 16-bit instructions are up to fifty times slower in 16 bits than in float32. GPUs older than Ampere
    # emulate bfloat16, and their only attention kernel for it materializes all scores.
    emulated = device.type in ("cpu", "cuda") and dtype in SHORT_DTYPES and not has_fast_matmul(device, dtype)
    return torch.float32 if emulated else dtype


def frozen_dtype(device: torch.device, dtype: torch.dtype, bf16: bool) -> torch.dtype:
    """Return the dtype for frozen weights of a dtype while adapters are trained."""
    # Gradients would underflow in float16 without loss scaling.
    return torch.float32 if dtype == torch.float16 and not bf16 else compute_dtype(device, dtype)


def move(model: Model, to: torch.device | torch.dtype) -> Model:
    """Call `model.to`, as which transformers declares a method without arguments."""
    return model.to(to)


def convert(model: Model, dtype: torch.dtype, device: torch.device | str | None = None) -> Model:
    """Convert the parameters of a model to a dtype in place, move it to a device, and return it.

    Buffers keep their dtype, as when transformers loads a model: with 16-bit frequencies, rotary embeddings are off by
    radians at the end of a window.
    """
    model = model if device is None else model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def is_quantized(config: PretrainedConfig) -> bool:
    """Return whether a config is that of a quantized model."""
    return getattr(config, "quantization_config", None) is not None


@contextmanager
def in_compute_dtype(model: PreTrainedModel) -> Iterator[None]:
    """Convert the parameters of a model to its `compute_dtype` for the duration of the context.

    Quantized models and models on several devices are left unchanged.
    """
    dtype = compute_dtype(model.device, model.dtype)
    if dtype == model.dtype or hasattr(model, "hf_device_map") or is_quantized(model.config):
        yield
        return
    original_dtypes = [parameter.dtype for parameter in model.parameters()]
    convert(model, dtype)
    try:
        yield
    finally:
        for parameter, original_dtype in zip(model.parameters(), original_dtypes):
            parameter.data = parameter.data.to(original_dtype)


@cache
@torch.no_grad()
def _cpu_has_fast_matmul(dtype: torch.dtype) -> bool:
    """Measure it in a few milliseconds, since the instruction set doesn't tell.

    With AVX-512 for bfloat16, products take a quarter of the time of float32 on a Zen 5, but twice the time on an
    Emerald Rapids without AMX.
    """
    # Every thread has the same work, whatever their number.
    factors = torch.ones(64 * torch.get_num_threads(), 512), torch.ones(512, 512)
    pairs = [[factor.to(kind) for factor in factors] for kind in (torch.float32, dtype)]
    # The fastest of a few is the same in every run, also while other processes compute.
    seconds = ([timeit(partial(linear, *pair), number=1) for pair in pairs] for _ in range(6))
    float32, short = map(min, zip(*seconds))
    return short < FAST_SHARE * float32


def computing_in(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return an autocast context for a dtype; `None` disables autocast."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def float32_products(factor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a factor of matrix products in float32, with autocast disabled.

    Hardware that is faster at it may multiply a bfloat16 factor in bfloat16, and a float16 one in TF32, which has as
    many digits. Since accumulation is in float32, nothing is lost.
    """
    on_cuda = on_cpu = "tf32" if factor.dtype in SHORT_DTYPES else "ieee"
    if factor.dtype == torch.bfloat16 and has_fast_matmul(factor.device, torch.bfloat16):
        on_cpu = "bf16"
    # Once one of them was set, as by `tf32` in transformers, torch refuses to report the overall precision.
    # torch's declarations lack `mkldnn.matmul`.
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, (on_cuda, on_cpu)):
            backend.fp32_precision = precision
        with computing_in(factor.device, None):
            yield factor.float()
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision

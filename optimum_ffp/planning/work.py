"""Floating-point operations of every stage of a prune, and how fast a machine computes and copies."""

import time
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ..config import FFPConfig
from ..engine.operations import forward_operations, head_share
from ..modeling.families import ModelUnit
from ..utils.tensors import pin
from .counts import last_norm_tokens


GIB = 2**30
# Share of the speed of a large matrix product that a prune reaches, as measured on the CPU.
EFFICIENCY = 0.7
# Operations of backward elimination per cubed column: factor, inverse and updates.
ELIMINATION, FACTOR = 2, 1 / 3
# Bytes per second that a disk is taken to read, as a solid-state disk does: nothing is read to find out.
DISK_SPEED = GIB
# Bytes that are copied to find out how fast weights get to the device.
COPIED = 2**26
# Stages whose passes end with the last layer, but for the fit of the last norm.
HEADLESS = ("statistics", "calibration")
# Size of the product that the speed is measured with, on the CPU and on accelerators, which are idle for most of the
# time of a small one; and for how many seconds.
SIZE, DEVICE_SIZE, SECONDS = 1024, 8192, 0.2


def stage_operations(
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    config: FFPConfig,
    tokens: Mapping[str, int | None],
    sparsities: int = 1,
) -> dict[str, float]:
    """Return the floating-point operations of every stage whose number of tokens is known.

    What a stage computes beside forward passes is added where it matters.

    Args:
        model: The dense model, for example on the meta device.
        units: Units of the model.
        config: Options of the prune.
        tokens: Tokens per stage in forward passes of the model.
        sparsities: Number of sparsities.
    """
    features = [unit.output.module.in_features for unit in units]
    in_layers, in_head = forward_operations(model, config.seq_len)
    found = {
        stage: float(count * (in_layers + in_head * (stage not in HEADLESS)))
        for stage, count in tokens.items()
        if count is not None
    }
    found["statistics"] += 2 * sum(count**2 for count in features) * tokens["statistics"]
    if tokens.get("fisher"):
        found["fisher"] += 2 * sum(unit.output.module.out_features**2 for unit in units) * tokens["fisher"] / 3
    if config.calibration == "distillation" and "calibration" in found:
        # Those of the last norm are passes through the head alone, counted by its share.
        found["calibration"] += sparsities * last_norm_tokens(config, head_share(model, config.seq_len)) * in_head
    if config.eliminates:
        found["importance"] = float(ELIMINATION * sum(count**3 for count in features))
    if config.needs_factors:
        found["factorisation"] = FACTOR * sum(count**3 for count in features)
    return found


def measure_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product on a device."""
    size = SIZE if device.type == "cpu" else DEVICE_SIZE
    factor = torch.ones(size, size, device=device, dtype=dtype)
    # Libraries of accelerators are loaded by the first product.
    float((factor @ factor)[0, 0])
    count, used = 1, 0.0
    while used < SECONDS:
        count *= 2
        start = time.perf_counter()
        for _ in range(count):
            product = factor @ factor
        # Waits for an accelerator.
        float(product[0, 0])
        used = time.perf_counter() - start
    return 2 * size**3 * count / used


def measure_copy_speed(device: torch.device, pinned: bool) -> float:
    """Return the bytes per second that get from host memory to a device, which may be host memory too.

    Args:
        device: The device.
        pinned: Whether the memory is pinned for CUDA, as that of layers is which are offloaded to it.
    """
    source = torch.ones(COPIED, dtype=torch.uint8)
    if pinned and device.type == "cuda":
        source = pin(source)
    used = []
    for _ in range(3):
        start = time.perf_counter()
        # Waits for an accelerator.
        int(source.to(device, copy=True)[-1])
        used.append(time.perf_counter() - start)
    return COPIED / min(used)


def describe_time(operations: float, seconds: float, speed: float, besides: str = "") -> str:
    """The time of a plan, and what it is computed from.

    Args:
        operations: Floating-point operations.
        seconds: Time that they take, or more.
        speed: Operations per second of a large matrix product.
        besides: What takes time too.
    """
    return (
        f"about {describe_duration(seconds)}{besides}: {operations / 1e12:,.1f} TFLOP at {EFFICIENCY:.0%} of the "
        f"{speed / 1e12:.3g} TFLOP/s that a matrix product has now"
    )


def describe_lack(what: str, used: int, where: str, free: int) -> str:
    """Return the warning that memory may not suffice for something, before what to do."""
    needs = f"{what} needs about {gib(used)} of {where}, and {gib(free)} are free"
    return f"memory may not suffice: {needs}; this is an estimate"


def gib(size: int) -> str:
    """A number of bytes in GiB."""
    return f"{size / GIB:,.2f} GiB"


def describe_duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, with two digits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds)} seconds"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"

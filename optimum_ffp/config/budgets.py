"""Budgets as users write them: names of limits, and quantities such as `6B`, `12GiB` and `32k`."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import FFPError


# Options that limit what a model costs, and how each is named in folders.
LIMITS = ("sparsity", "params", "memory", "kv_cache", "speedup", "experts", "vocabulary")
BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
COUNTS = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Contexts are powers of two.
TOKENS = {"k": 2**10, "M": 2**20}
# Units of options, and examples of values.
QUANTITIES = {
    "params": (COUNTS, "600M, 6B or 80%"),
    "memory": (BYTES, "900MiB, 12GiB or 80%"),
    "context": (TOKENS, "4096 or 32k"),
    "vocabulary": (TOKENS, "65536, 64k or auto"),
    "max_tokens": (COUNTS, "400k or 2M"),
    "batch_tokens": (COUNTS, "8192 or 128k"),
}


def parse_quantity(option: str, value: Any) -> int | str:
    """Return the number of `6B`, `12GiB` or `32k`; a percentage such as `80%` and `auto` are returned as they are.

    Raises `FFPError` if it is malformed.
    """
    if option == "vocabulary" and value == "auto":
        return value
    names, example = QUANTITIES[option]
    units = {name.lower(): factor for name, factor in names.items()}
    # Separators of thousands: 6,500,000 and not 6,5.
    plain = re.sub(r"(?<=\d)[ ,_](?=\d{3}(?!\d))", "", str(value)).lower()
    if option in ("params", "memory") and re.fullmatch(r"\d{1,2}(\.\d+)? ?%", plain):
        return plain.replace(" ", "")
    match = re.fullmatch(r"(\d{1,30}(?:\.\d+)?) ?([a-z]*)", plain)
    if not match or match[2] not in {"", *units}:
        raise FFPError(f"invalid {option} {value!r}; write it as {example}")
    return round(float(match[1]) * units.get(match[2], 1))


def parse_workload(workload: str) -> tuple[int, int, int]:
    """Return the prompt tokens, new tokens and sequences of `1024+200x8`; raise `FFPError` if it is malformed."""
    match = re.fullmatch(r"([1-9]\d*)\+(\d+)(?:x([1-9]\d*))?", str(workload).replace(" ", ""))
    if not match:
        raise FFPError(
            f"invalid workload {workload!r}; write it as prompt tokens + new tokens x sequences, such as 1024+200x8"
        )
    prompt, new, sequences = match.groups(default="1")
    return int(prompt), int(new), int(sequences)


def format_value(option: str, value: float, rounding: Callable[[float], int] = round) -> str:
    """Format the value of a limit as it can be given: `0.2`, `6B` or `12GiB`, with four digits after the point."""
    # Print memory in binary units only.
    names, _ = QUANTITIES.get(option, ({}, ""))
    units = {name: factor for name, factor in names.items() if option != "memory" or "i" in name}
    fitting = [name for name in reversed(units) if value >= units[name]] or [""]
    # 1400MiB rather than 1.3672GiB, but 449.8059MiB rather than 460601.25KiB.
    short = (name for name in fitting if value * 1000 % (unit := units.get(name, 1)) == 0 and value < 10**4 * unit)
    name = next(short, fitting[0])
    return f"{rounding(value / units.get(name, 1) * 10**4) / 10**4:.10g}{name}"


def describe_limits(limits: Iterable[Mapping[str, Any]]) -> str:
    """Describe all limits of a record except the sparsity, such as `params 5.999B (6B asked for, dense 8B)`."""
    texts = []
    for limit in limits:
        reached, asked, dense = (format_value(limit["option"], limit[name]) for name in ("reached", "asked", "dense"))
        # A speed is predicted.
        measured = f", measured {limit['measured']:.4g}" if "measured" in limit else ""
        if limit["option"] != "sparsity":
            texts.append(f"{limit['option']} {reached} ({asked} asked for, dense {dense}{measured})")
    return "; ".join(texts)

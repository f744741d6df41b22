"""Seconds that a token of the vocabulary, an attention or an FFN of every size takes, measured in whole models."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from accelerate.utils import set_module_tensor_to_device
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy, Unit
from ..config import FFPConfig
from ..config.budgets import parse_workload
from ..config.fields import read_file
from ..errors import FFPError
from ..modeling.auto import pruned_config
from ..modeling.families import find_family, find_units
from ..modeling.loading import empty_model
from ..utils.device_memory import device_name
from ..utils.folders import expand
from ..utils.lm_head import embedding_of
from ..utils.precision import dtype_name
from ..utils.record import Record
from .latency import time_models


# Number of sizes below the dense one that are measured.
SIZES = 8


def read_costs(config: FFPConfig) -> dict[str, Any] | None:
    """Return the times in the option `costs`, as measured by `measure_costs`; `None` if there are none yet.

    Raises:
        FFPError: If the file has none, or they are for another workload.
    """
    table = config.costs
    if isinstance(table, str):
        if not expand(table).exists():
            return None
        record = Record.read(table)
        table = record.options.get("costs") if record else read_file(table)
    if config.costs and not _are_times(table):
        raise FFPError(
            "costs must have a workload and its finite times; pass a result of a prune with speedup, or a new file"
        )
    if table and config.workload and parse_workload(config.workload) != parse_workload(table["workload"]):
        raise FFPError(
            f"costs were measured on workload {table['workload']}, found {config.workload}; leave out one of them"
        )
    return table


def _are_times(table: Any) -> bool:
    try:
        times = [table["dense"], table.get("scale", 1), *(one for row in table["units"] for one in row["seconds"])]
        parse_workload(table["workload"])
        return table["dense"] > 0 and all(0 <= one < math.inf for one in times)
    except (KeyError, TypeError, ValueError):
        return False


def measure_costs(model: PreTrainedModel, workload: str) -> dict[str, Any]:
    """Measure the seconds of every kind of unit by its size, and those of a token of the vocabulary.

    All units of a kind get a size at a time, and the time that this saves is divided by their number. That of a token
    is measured with half of them.

    Args:
        model: The dense model, with all weights on its device.
        workload: Prompt tokens, new tokens and sequences, such as `1024+200x8`.

    Returns:
        The `workload`, `device` and `dtype`, the seconds of the `dense` model and of a `token`, and a row for each
        kind of `units`: their `layers`, and `seconds` by `sizes`, not decreasing, relative to those of the smallest
        size.

    Raises:
        FFPError: If the workload has more tokens than the model has positions.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and sum(parse_workload(workload)[:2]) > positions:
        raise FFPError(f"workload {workload} has more tokens than the {positions} positions of the model; shorten it")
    family, types, tried = find_family(model.config), getattr(model.config, "layer_types", None), {}
    by_group = [
        tuple(replace(one.unit, removed=0) for one in find_units(model, family, None, group))
        for group in family.attention_groups(model.config)
    ]
    for units in by_group:
        kinds = defaultdict(list)
        for unit in units:
            # Windows make a difference to attention alone.
            window = types[unit.layer] if types and unit.kind == "attention" else None
            kinds[unit.kind, unit.group, window].append(unit)
        for kind, members in kinds.items():
            tried[kind] = members, _narrowed(units, members)
    tokens = len(embedding_of(model).weight)
    models = [_sized(model, policy) for _, one in tried.values() for policy in one.values()]
    whole = PruningPolicy.dense(by_group[0])
    dense, (*seconds, half) = _time(_sized(model, whole), [*models, _sized(model, whole, tokens // 2)], workload)
    token, measured, rows = max(0, dense - half) / (tokens - tokens // 2), iter(seconds), []
    for (kind, group, _), (members, policies) in tried.items():
        saved = [(dense - next(measured)) / sum(size >= unit.required for unit in members) for size in policies]
        taken = np.maximum.accumulate([saved[0] - value for value in (*saved, 0)]).tolist()
        layers, sizes = [unit.layer for unit in members], [*policies, members[0].groups]
        rows.append({"unit": kind, "group": group, "layers": layers, "sizes": sizes, "seconds": taken})
    hardware = {"device": device_name(model.device), "dtype": dtype_name(model.dtype)}
    return {"workload": workload, **hardware, "dense": dense, "token": token, "units": rows}


def _narrowed(units: tuple[Unit, ...], members: Sequence[Unit]) -> dict[int, PruningPolicy]:
    """Return policies by size, ascending, in which units of one kind have it, if they can, and others are dense."""
    groups, step, policies = members[0].groups, members[0].multiple, {}
    for part in range(SIZES):
        size = round(groups / step * part / SIZES) * step
        sizes = tuple(size if unit in members and size >= unit.required else unit.groups for unit in units)
        policies[size] = PruningPolicy(units, sizes)
    return {size: policy for size, policy in policies.items() if policy != PruningPolicy.dense(units)}


def measure_speedup(model: PreTrainedModel, policy: PruningPolicy, workload: str, tokens: int | None = None) -> float:
    """Measure the speed of a policy relative to that of the dense model.

    With a number of `tokens`, the vocabulary has as many. Other arguments are as for `measure_costs`.
    """
    reference = _sized(model, PruningPolicy.dense([replace(unit, removed=0) for unit in policy.units]))
    dense, (pruned,) = _time(reference, [_sized(model, policy, tokens)], workload, repeats=9)
    return dense / pruned


def _time(
    reference: PreTrainedModel, sized: Sequence[PreTrainedModel], workload: str, repeats: int = 5
) -> tuple[float, list[float]]:
    """Return the median seconds of a workload with the dense model and those of others, measured in turns."""
    models: dict[Any, PreTrainedModel] = {}
    for index, one in enumerate(sized):
        if index % 4 == 0:
            # More often than the others, since its error is in all that is saved.
            models["dense", index] = reference
        models[index] = one
    seconds = time_models(models, *parse_workload(workload), repeats)
    of_dense = [sum(one) for name in models if models[name] is reference for one in seconds[name]]
    return median(of_dense), [median(map(sum, seconds[index])) for index in range(len(sized))]


def _sized(model: PreTrainedModel, policy: PruningPolicy, tokens: int | None = None) -> PreTrainedModel:
    """Return a model of other sizes in the memory of the dense one, as speed doesn't depend on weights."""
    config = pruned_config(model.config, policy)
    config.vocab_size = tokens or config.vocab_size
    sized = empty_model(config, model.dtype)
    memory = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in [*sized.named_parameters(), *sized.named_buffers()]:
        view = memory[name].data.flatten()[: tensor.numel()].view(tensor.shape)
        set_module_tensor_to_device(sized, name, model.device, view)
    sized.tie_weights()
    return sized.eval()

"""JSON-ready records of the measurements of a model."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from ..utils.precision import dtype_name
from .divergence import Comparison, Predictions
from .latency import Speed
from .size import kv_cache_bytes, projection_parameters, recorded_sparsity, weight_bytes


def size_record(model: PreTrainedModel, model_id: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Name, type and sizes of a model, and the sparsity according to its `ffp_config.json`.

    Args:
        model: A causal LM.
        model_id: Source of the model: Hub id, folder or `.gguf` file.
        hub: `revision`, `token`.
    """
    record = {
        "name": os.fspath(model_id),
        "model_type": model.config.model_type,
        "dtype": dtype_name(model.dtype),
        # Of a model that accelerate has spread, all of them.
        "device": ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters())),
        "parameters": model.num_parameters(),
        "projection_parameters": projection_parameters(model),
        "weight_bytes": weight_bytes(model, model_id, **hub),
        "kv_cache_bytes": kv_cache_bytes(model),
    }
    if sparsity := recorded_sparsity(model_id, **hub):
        record |= sparsity | {"sparsity_source": "ffp_config.json"}
    return record


def perplexity_record(
    model: PreTrainedModel,
    windows: torch.Tensor,
    origin: Mapping[str, Any],
    batch_size: int,
    on_batch: Callable[[int], Any] | None = None,
    keep: Predictions | None = None,
    baseline: Predictions | None = None,
) -> dict[str, Any]:
    """Perplexity of a model, with the description of the windows, and its divergence from its baseline.

    Args:
        model: A causal LM.
        windows: Token ids, shape `[windows, window length]`.
        origin: Record of the windows, as `Windows.describe` returns it.
        batch_size: Windows per forward pass.
        on_batch: Called with the number of windows after every batch.
        keep: Takes what the model predicts, if it is itself a baseline.
        baseline: What the baseline predicts for the windows, if it predicts the same tokens.

    Returns:
        That record with `perplexity`, `loss` and those of every window, `losses`, which are `None` if not finite, with
        their counts, and `comparable`; with a baseline also the record of `Comparison`.
    """
    # Imported here: it takes a second, which a prune doesn't need.
    from .metric import Perplexity

    # In memory: a home directory may be read-only.
    metric = Perplexity(keep_in_memory=True)
    comparison = Comparison(baseline) if baseline else None
    callbacks = {"on_batch": on_batch, "on_decoded": comparison.read if comparison else keep and keep.keep}
    figures = metric.compute(predictions=windows.tolist(), model=model, batch_size=batch_size, **callbacks)
    if comparison:
        figures |= comparison.record()
    finite = {
        name: [*map(_finite, value)] if isinstance(value, list) else _finite(value) for name, value in figures.items()
    }
    return {**origin, **finite, "comparable": True}


def _finite(value: float) -> float | None:
    # JSON has no infinity.
    return value if math.isfinite(value) else None


def texts_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records of perplexity in the record of a model, one of each text."""
    return [record["perplexity"], *record.get("other_texts", [])] if "perplexity" in record else []


def compare_records(
    records: dict[str, dict[str, Any]], tokens: Mapping[str, Sequence[torch.Tensor]], speeds: Mapping[str, Speed]
) -> None:
    """Adds to the records the comparison of the model with its baseline, in place.

    Args:
        records: Records of `model` and, if there are any, of `baseline` and further ones.
        tokens: Windows of the perplexities of each, shape `[windows, window length]`.
        speeds: Speed of each; empty if not measured.
    """
    for role, speed in speeds.items():
        records[role]["speed"] = asdict(speed)
    if not {"model", "baseline"} <= records.keys():
        return
    model, baseline = records["model"], records["baseline"]
    kept, dense = model["projection_parameters"], baseline["projection_parameters"]
    # The model was not pruned from a smaller baseline.
    if kept and dense and kept <= dense:
        model["sparsity"] = 1 - kept / dense
        model["model_sparsity"] = 1 - model["parameters"] / baseline["parameters"]
        model["sparsity_source"] = "the baseline"
    for number, first in enumerate(tokens["model"]):
        comparable = all(torch.equal(windows[number], first) for windows in tokens.values())
        for record in records.values():
            texts_of(record)[number]["comparable"] = comparable
        if comparable:
            compared = texts_of(model)[number], texts_of(baseline)[number]
            compared[0]["ratio_error"] = _ratio_error(*(one["losses"] for one in compared))
    if speeds:
        model["speed_ratio"] = {name: model["speed"][name] / baseline["speed"][name] for name in ("prefill", "decode")}


def _ratio_error(losses: Sequence[float | None], others: Sequence[float | None]) -> float | None:
    """Standard error of the ratio of two perplexities on the same windows, by the differences of paired losses."""
    if len(losses) < 2 or None in losses or None in others:
        return None
    paired = torch.tensor([losses, others], dtype=torch.float64)
    differences = paired[0] - paired[1]
    return float(differences.mean().exp() * differences.std() / len(differences) ** 0.5)

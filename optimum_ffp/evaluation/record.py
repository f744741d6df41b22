"""JSON-ready records of the measurements of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import Windows
from ..hub.record import prune_record
from ..utils.precision import dtype_name
from ..utils.progress import progress_bar
from .divergence import Comparison, Predictions
from .size import kv_cache_bytes, projection_parameters, weight_bytes


def size_record(model: PreTrainedModel, source: str | None = None, **hub: Any) -> dict[str, Any]:
    """Return the type and sizes of a model, and the sparsity according to its `ffp_config.json`.

    Args:
        model: A causal LM.
        source: Hub id, folder or `.gguf` file that it was loaded from, for what is read there.
        hub: `revision`, `token`.
    """
    record = {
        "model_type": model.config.model_type,
        "dtype": dtype_name(model.dtype),
        # Of a model that accelerate has spread, all of them.
        "device": ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters())),
        "parameters": model.num_parameters(),
        "projection_parameters": projection_parameters(model),
        "kv_cache_bytes": kv_cache_bytes(model),
    }
    if source:
        record["weight_bytes"] = weight_bytes(model, source, **hub)
        if pruned := prune_record(source, **hub):
            record["sparsity"] = pruned["policy"]["sparsity"]
            record["model_sparsity"] = pruned["provenance"]["model_sparsity"]
            record["sparsity_source"] = "ffp_config.json"
    return record


def perplexity_record(
    model: PreTrainedModel,
    windows: Windows,
    batch_size: int = 1,
    keep: Predictions | None = None,
    baseline: Predictions | None = None,
    label: str = "Perplexity",
) -> dict[str, Any]:
    """Return the perplexity of a model, with the description of the windows, and its divergence from its baseline.

    Args:
        model: A causal LM.
        windows: The windows.
        batch_size: Windows per forward pass.
        keep: Takes what the model predicts, if it is itself a baseline.
        baseline: What the baseline predicts for the windows, if it predicts the same tokens.
        label: Label of the progress bar.

    Returns:
        The figures of `Perplexity`, and `comparable`; with a baseline also the record of `Comparison`.
    """
    # Imported here: it takes a second, which a prune doesn't need.
    from .metric import Perplexity

    comparison = Comparison(baseline) if baseline else None
    on_decoded = comparison.read if comparison else None
    if keep:
        keep.clear()
        on_decoded = keep.keep
    with progress_bar(len(windows), label, "window") as bar:
        # In memory: a home directory may be read-only.
        figures = Perplexity(keep_in_memory=True).compute(
            predictions=windows.tokens.tolist(),
            model=model,
            batch_size=batch_size,
            on_batch=bar.update,
            on_decoded=on_decoded,
        )
    if comparison:
        figures |= comparison.record()
    return windows.describe() | figures | {"comparable": True}


def text_records(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of perplexity in the record of a model, one of each text."""
    return [record["perplexity"], *record["other_texts"]] if "perplexity" in record else []


def compare_records(records: dict[str, dict[str, Any]], texts: Mapping[str, Sequence[Windows]]) -> None:
    """Add to the records the comparison of the model with its baseline, in place.

    Args:
        records: Records of `model` and, if there are any, of `baseline` and further ones.
        texts: Windows of the perplexities of each.
    """
    if "baseline" not in records:
        return
    model, baseline = records["model"], records["baseline"]
    kept, dense = model["projection_parameters"], baseline["projection_parameters"]
    # The model was not pruned from a smaller baseline.
    if kept and dense and kept <= dense:
        model["sparsity"] = 1 - kept / dense
        model["model_sparsity"] = 1 - model["parameters"] / baseline["parameters"]
        model["sparsity_source"] = "the baseline"
    for number, text in enumerate(texts.get("model", ())):
        comparable = all(torch.equal(others[number].tokens, text.tokens) for others in texts.values())
        for record in records.values():
            text_records(record)[number]["comparable"] = comparable
        if comparable:
            measured = text_records(model)[number]
            measured["ratio_error"] = _ratio_error(measured["losses"], text_records(baseline)[number]["losses"])
    if "speed" in model:
        model["speed_ratio"] = {name: model["speed"][name] / baseline["speed"][name] for name in ("prefill", "decode")}


def _ratio_error(losses: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the standard error of the ratio of two perplexities on the same windows, by the paired differences."""
    if len(losses) < 2:
        return None
    differences = torch.tensor(losses, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)
    return float(differences.mean().exp() * differences.std() / len(differences) ** 0.5)

"""JSON-ready records of the measurements of a model."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import exp, sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import Windows
from ..modeling.loading import empty_model
from ..utils.precision import dtype_name, is_quantized
from ..utils.progress import progress_bar
from ..utils.record import Record
from ..utils.standard_error import block_error
from ..vocabulary.trimmed import TrimmedVocabulary
from .divergence import Comparison, Predictions
from .perplexity import describe_losses, window_losses
from .size import kv_cache_bytes, projection_parameters, weight_bytes


def size_record(
    model: PreTrainedModel, source: str | None = None, pruned: Record | None = None, **hub: Any
) -> dict[str, Any]:
    """Return the type and sizes of a model, and its sparsity if it has the record of a pruned model.

    `source` is the Hub id or folder that it was loaded from, whose weight files are counted, with its Hub options.
    """
    # Quantized models have scales, and several weights in a number.
    unquantized = empty_model(model.config) if is_quantized(model.config) else model
    record = {
        "model_type": model.config.model_type,
        "dtype": dtype_name(model.dtype),
        # Several for models dispatched by accelerate.
        "device": ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters())),
        "parameters": unquantized.num_parameters(),
        "projection_parameters": projection_parameters(unquantized),
        "kv_cache_bytes": kv_cache_bytes(model),
    }
    if source:
        record["weight_bytes"] = weight_bytes(model, source, **hub)
    if pruned:
        record["sparsity"] = pruned.policy.sparsity
        record["model_sparsity"] = pruned.provenance.model_sparsity
        record["sparsity_source"] = "ffp_config.json"
    return record


def perplexity_record(
    model: PreTrainedModel,
    windows: Windows,
    batch_size: int = 1,
    store: Predictions | None = None,
    baseline: Predictions | None = None,
    label: str = "Perplexity",
    vocabulary: TrimmedVocabulary | None = None,
) -> dict[str, Any]:
    """Measure the perplexity of a model, and its divergence from the predictions of a baseline.

    A baseline itself stores its predictions in `store`. `vocabulary` is as for `window_losses`.
    """
    comparison, on_decoded = Comparison(baseline) if baseline else None, None
    if store:
        store.clear()
        on_decoded = store.append
    elif comparison:
        on_decoded = comparison.begin_batch
    with progress_bar(len(windows), label, "window") as bar:
        losses = window_losses(model, windows.tokens, batch_size, bar.update, on_decoded, vocabulary)
    divergence = comparison.record() if comparison else {}
    return windows.describe() | describe_losses(losses) | divergence | {"comparable": True}


def text_records(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the perplexity records in the record of a model, one per text."""
    return [record["perplexity"], *record["other_texts"]] if "perplexity" in record else []


def compare_records(records: dict[str, dict[str, Any]], texts: Mapping[str, Sequence[Windows]]) -> None:
    """Add the comparison with `baseline` to the records, in place, given the test windows by model."""
    if "baseline" not in records:
        return
    for role, record in records.items():
        if role != "baseline":
            for task, reference in zip(record.get("tasks", ()), records["baseline"].get("tasks", ())):
                _compare_samples(task, reference)
    model, baseline = records["model"], records["baseline"]
    remaining, dense = model["projection_parameters"], baseline["projection_parameters"]
    # The model was not pruned from a smaller baseline.
    if remaining and dense and remaining <= dense:
        model["sparsity"] = 1 - remaining / dense
        model["model_sparsity"] = 1 - model["parameters"] / baseline["parameters"]
        model["sparsity_source"] = "the baseline"
    for number, text in enumerate(texts.get("model", ())):
        comparable = all(torch.equal(windows[number].tokens, text.tokens) for windows in texts.values())
        for record in records.values():
            text_records(record)[number]["comparable"] = comparable
        if comparable:
            measured = text_records(model)[number]
            pairs = zip(measured["losses"], text_records(baseline)[number]["losses"])
            differences = [loss - dense for loss, dense in pairs]
            # By the delta method.
            error = block_error(differences)
            measured["ratio_error"] = error and exp(fmean(differences)) * error


def _compare_samples(task: dict[str, Any], reference: Mapping[str, Any]) -> None:
    """Add the errors of ratios, and the fraction of the samples solved by the baseline that are solved too."""
    for name, scores in task.get("per_sample", {}).items():
        pairs = [*zip(scores, reference["per_sample"][name])]
        mean = fmean(score for _, score in pairs)
        if mean and len(pairs) > 1:
            ratio = fmean(scores) / mean
            # By the delta method.
            error = stdev(own - ratio * score for own, score in pairs) / sqrt(len(pairs)) / mean
            task.setdefault("ratio_error", {})[name] = error
        if {*chain(*pairs)} <= {0, 1} and (solved := [own for own, score in pairs if score]):
            kept = fmean(solved)
            error = sqrt(kept * (1 - kept) / len(solved))
            task.setdefault("kept", {})[name] = {"fraction": kept, "error": error, "of": len(solved)}

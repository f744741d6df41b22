"""Figures of a model and its baseline as a text table."""

from collections.abc import Iterator, Mapping
from statistics import stdev
from typing import Any

from ..data import describe_windows
from .record import texts_of


MIB = 2**20
DIVERGENCE = "KL divergence of the next token from the baseline, nats"
AGREEMENT = "predicted as the most likely by the baseline too"


def comparison_table(records: Mapping[str, dict[str, Any]]) -> str:
    """A table with one column per model, the ratio of the first two, and the data of each figure.

    Args:
        records: Records of `model` and, if there are any, of `baseline` and further ones.
    """
    names = [record["name"].rstrip("/").rpartition("/")[2] for record in records.values()]
    heads = ["", *names, *(["ratio"] if len(records) > 1 else []), ""]
    rows = [heads, *_rows(records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = []
    for first, *figures, note in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:])), note]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _rows(records: Mapping[str, dict[str, Any]]) -> Iterator[list[str]]:
    figures = [{label: rest for label, *rest in _figures(record)} for record in records.values()]
    errors = {label: one.get("ratio_error") for label, one in _perplexities(next(iter(records.values()))).items()}
    for label in dict.fromkeys(label for of_model in figures for label in of_model):
        values, texts, notes = zip(*(of_model.get(label, (None, "-", "")) for of_model in figures))
        compared = values[:2]
        comparable = None not in compared and compared[-1] and len(set(notes[:2])) == 1
        error = "" if errors.get(label) is None else f" ± {errors[label]:.3f}"
        ratio = [f"{compared[0] / compared[-1]:.3f}{error}" if comparable else "-"] if len(values) > 1 else []
        yield [label, *texts, *ratio, " | ".join(dict.fromkeys(filter(None, notes)))]


def _figures(record: dict[str, Any]) -> Iterator[tuple[str, float | None, str, str]]:
    # Per figure: label, value if its ratio is meaningful, text, and a note on the data.
    dequantised = f"{record['name']} is dequantised" if record["name"].endswith(".gguf") else ""
    yield "type", None, f"{record['dtype']}, {record['device']}", dequantised
    if record.get("compute_dtype", record["dtype"]) != record["dtype"]:
        yield "computed in", None, record["compute_dtype"], "perplexity and tasks, faster than 16 bits here"
    yield "parameters", record["parameters"], f"{record['parameters']:,}", ""
    if record.get("projection_parameters"):
        value = record["projection_parameters"]
        yield "parameters of the blocks", value, f"{value:,}", "projections of attention and FFN"
    for key, label in (("sparsity", "sparsity of the blocks"), ("model_sparsity", "sparsity of the model")):
        if key in record:
            yield label, None, f"{record[key]:.4%}", f"according to {record['sparsity_source']}"
    yield "size of the weights", record["weight_bytes"], f"{record['weight_bytes'] / MIB:,.1f} MiB", "on disk"
    yield "KV cache per token", record["kv_cache_bytes"], f"{record['kv_cache_bytes']:,} bytes", ""
    for label, measured in _perplexities(record).items():
        value = measured["perplexity"] if measured["comparable"] else None
        yield label, value, _number(measured["perplexity"], 4), _windows(measured)
        if "divergence" in measured:
            of_text = label.removeprefix("perplexity")
            yield f"divergence{of_text}", None, _with_error(measured), DIVERGENCE
            yield f"same token{of_text}", None, f"{100 * measured['agreement']:.2f} %", AGREEMENT
    for key in ("prefill", "decode"):
        if "speed" in record:
            speed = record["speed"]
            yield f"{key}, tokens/s", speed[key], f"{speed[key]:,.1f}", _speed(key, speed)
    for task in record.get("tasks", ()):
        for name, value in task["metrics"].items():
            error = task["stderr"].get(name)
            text = _number(value, 4) + ("" if error is None else f" ± {error:.4f}")
            yield f"{task['task']}, {name}", value, text, _samples(task)


def _perplexities(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    several = bool(record.get("other_texts"))
    texts = enumerate(texts_of(record), 1)
    return {f"perplexity, text {number}" if several else "perplexity": one for number, one in texts}


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:,.{digits}f}"


def _with_error(measured: Mapping[str, Any]) -> str:
    """The divergence and its standard error over windows."""
    figures = measured["divergences"]
    known = len(figures) > 1 and None not in figures
    return _number(measured["divergence"], 4) + (f" ± {stdev(figures) / len(figures) ** 0.5:.4f}" if known else "")


def _windows(measured: dict[str, Any]) -> str:
    return describe_windows(measured) + ("" if measured["comparable"] else " (the tokenizers differ)")


def _speed(key: str, speed: dict[str, Any]) -> str:
    counted = f"{speed['prompt_tokens']} tokens of prompt" if key == "prefill" else f"{speed['new_tokens']} after it"
    return f"{counted}, batch {speed['batch_size']}, median of {speed['repeats']}"


def _samples(task: dict[str, Any]) -> str:
    told = []
    if task["samples"] is not None:
        told.append(f"{task['samples']} samples")
    if task["fewshot"]:
        told.append(f"{task['fewshot']} shots")
    return ", ".join(told)

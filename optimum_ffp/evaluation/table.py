"""Text table of the figures of models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..data import describe_windows
from ..utils.standard_error import block_error
from .perplexity import bits_per_byte
from .record import text_records


MIB = 2**20


def comparison_table(records: Mapping[str, dict[str, Any]]) -> str:
    """Format a table with one column per model and the ratio of the first two, and notes below it."""
    names = [record["name"].rstrip("/").rpartition("/")[2] for record in records.values()]
    rows = [["", *names, *(["ratio"] if len(records) > 1 else []), ""], *_rows(records)]
    notes = [f"{label}: {note}" for label, *_, note in rows if note]
    return "\n".join([align([row[:-1] for row in rows]), "", *notes])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Format a table with its first column aligned to the left, and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for label, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        lines.append("  ".join([label.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def format_rows(rows: Iterable[tuple[str, Any]]) -> str:
    """Format names and values, one pair per line."""
    rows = [*rows]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _rows(records: Mapping[str, dict[str, Any]]) -> Iterator[list[str]]:
    figures = [{label: cells for label, *cells in _figures(record)} for record in records.values()]
    first = next(iter(records.values()))
    errors = {label: text.get("ratio_error") for label, text in _perplexities(first).items()}
    for task in first.get("tasks", ()):
        errors |= {f"{task['task']}, {name}": error for name, error in task.get("ratio_error", {}).items()}
    for label in dict.fromkeys(label for by_label in figures for label in by_label):
        values, texts, notes = zip(*(by_label.get(label, (None, "-", "")) for by_label in figures))
        ratio = []
        if len(values) > 1:
            comparable = None not in values[:2] and values[1] and notes[0] == notes[1]
            error = "" if errors.get(label) is None else f" ± {errors[label]:.3f}"
            ratio = [f"{values[0] / values[1]:.3f}{error}" if comparable else "-"]
        yield [label, *texts, *ratio, " | ".join(dict.fromkeys(filter(None, notes)))]


def _figures(record: dict[str, Any]) -> Iterator[tuple[str, float | None, str, str]]:
    # Label, value if its ratio is meaningful, text and note.
    dequantized = f"{record['name']} is dequantized" if record["name"].endswith(".gguf") else ""
    yield "type", None, f"{record['dtype']}, {record['device']}", dequantized
    if record["compute_dtype"] != record["dtype"]:
        yield "computed in", None, record["compute_dtype"], "perplexity and tasks, faster than 16 bits here"
    yield "parameters", record["parameters"], f"{record['parameters']:,}", ""
    if value := record["projection_parameters"]:
        note = "projections of attention and FFN, or the experts and routers of a mixture"
        yield "prunable parameters", value, f"{value:,}", note
    if "sparsity" in record:
        note = f"according to {record['sparsity_source']}"
        yield "sparsity", None, f"{100 * record['sparsity']:.2f} %", f"of the prunable parameters, {note}"
        yield "sparsity of the model", None, f"{100 * record['model_sparsity']:.2f} %", note
    if "weight_bytes" in record:
        yield "size of the weights", record["weight_bytes"], f"{record['weight_bytes'] / MIB:,.1f} MiB", "on disk"
    yield "KV cache per token", record["kv_cache_bytes"], f"{record['kv_cache_bytes']:,} bytes", ""
    for label, measured in _perplexities(record).items():
        value = measured["perplexity"] if measured["comparable"] else None
        note = describe_windows(measured) + ("" if measured["comparable"] else " (the tokenizers differ)")
        yield label, value, f"{measured['perplexity']:,.2f}", note
        if (bits := bits_per_byte(measured["perplexity"], measured)) is not None:
            value = bits if measured["comparable"] else None
            yield label.replace("perplexity", "bits per byte"), value, f"{bits:.3f}", "mean loss per UTF-8 byte"
        if "divergence" in measured:
            note = "KL divergence of the next token from the baseline, nats"
            yield label.replace("perplexity", "divergence"), None, _divergence(measured), note
            note = "top-1 agreement with the baseline"
            yield label.replace("perplexity", "same token"), None, f"{100 * measured['agreement']:.2f} %", note
    if speed := record.get("speed"):
        note = f"batch {speed['batch_size']}, median of {speed['repeats']}"
        prefill, decode = speed["prefill"], speed["decode"]
        yield "prefill, tokens/s", prefill, f"{prefill:,.1f}", f"{speed['prompt_tokens']} tokens of prompt, {note}"
        yield "decode, tokens/s", decode, f"{decode:,.1f}", f"{speed['new_tokens']} new tokens, {note}"
    for task in record.get("tasks", ()):
        note = f"{task['samples']} samples, {task['fewshot']} shots" if task["samples"] else ""
        for name, value in task["metrics"].items():
            label = f"{task['task']}, {name}"
            yield label, value, _number(value, task["stderr"].get(name)), note
            if kept := task.get("kept", {}).get(name):
                text = f"{100 * kept['fraction']:.1f} ± {100 * kept['error']:.1f} %"
                yield f"{label} kept", None, text, f"of the {kept['of']} samples that the baseline solves"


def _perplexities(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    texts = text_records(record)
    return {f"perplexity, text {number}" if texts[1:] else "perplexity": text for number, text in enumerate(texts, 1)}


def _divergence(measured: Mapping[str, Any]) -> str:
    """Format the divergence and its standard error over windows."""
    return _number(measured["divergence"], block_error(measured["divergences"]))


def _number(value: float, error: float | None) -> str:
    return f"{value:,.4f}" + ("" if error is None else f" ± {error:.4f}")

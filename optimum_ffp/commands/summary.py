"""What `ffp prune` and `ffp recover` print at the end."""

import logging
from collections.abc import Iterable, Sequence

from ..config.budgets import format_value
from ..evaluation.table import MIB, align, format_rows
from .records import Figures


logger = logging.getLogger(__name__)
# Ratio of the perplexity to the dense model's that a prune warns of.
HIGH_RATIO = 1.5
# Entries of the record of a prune to print as they are.
NOTES = ("experts", "removed_whole", "budget", "search")


def summarize(records: Sequence[Figures], next_step: str) -> str:
    """Format the size and quality of a model, from its record, that of the model before it, and the dense model's."""
    result = records[0]
    # The teacher of a recovery may be another model.
    dense = {name: result[name] / (1 - result["model_sparsity"]) for name in ("parameters", "weight_bytes")}
    removed = f"sparsity {_percent(result['sparsity'])}, {_percent(result['model_sparsity'])} of the whole model"
    perplexities = [
        ", ".join(f"{record['role']} {_perplexity(record, text)}" for record in reversed(records)) + f" on {text}"
        for text in _texts(result)
    ]
    rows = [
        ["size", f"{dense['parameters']:,.0f} -> {result['parameters']:,} parameters; {removed}"],
        ["weights", f"{_mib(dense)} -> {_mib(result)} MiB, {result['dtype']}"],
        *([name.replace("_", " "), result[name]] for name in NOTES if name in result),
        ["perplexity", "; ".join(perplexities)],
        *_stages(result),
        ["saved in", f"{result['model']}, with report.html"],
        ["next step", next_step],
    ]
    return "\n" + format_rows(rows)


def _stages(record: Figures) -> list[list[str]]:
    """Return a row with the figures on held-out windows after every stage of a calibration, if it compared several."""
    stages = [name.partition("/")[2] for name in record if name.startswith("held_out_perplexity/")]
    if not stages:
        return []
    texts = [
        f"{one} {record[f'held_out_perplexity/{one}']:,.2f} ({record[f'held_out_divergence/{one}']:.4f})"
        for one in stages
    ]
    kept, closest = record["calibration"], min(stages, key=lambda one: record[f"held_out_divergence/{one}"])
    note = f", although the divergence is lowest with {closest}" if closest != kept else ""
    return [["calibration", f"held-out perplexity (and divergence): {', '.join(texts)}; kept: {kept}{note}"]]


def sweep_table(records: Sequence[Figures]) -> str:
    """Format a table of the pruned models of a sweep and, as the last record, of the dense model."""
    *pruned, dense = records
    texts = _texts(dense)
    # The other limits have a column already.
    options = [name for name in ("memory", "kv_cache", "speedup") if f"reached/{name}" in pruned[0]]
    rows = [["", "blocks", "model", "parameters", "MiB", *options, *(f"perplexity, {text}" for text in texts)]]
    for record in (dense, *pruned):
        removed = [f"-{_percent(record[name])}" for name in ("sparsity", "model_sparsity") if name in record]
        sizes = [f"{record['parameters']:,}", _mib(record)]
        limited = [pruned[0][f"dense/{name}"] if record is dense else record[f"reached/{name}"] for name in options]
        sizes += map(format_value, options, limited)
        rows.append([record["model"], *(removed or ["", ""]), *sizes, *(_perplexity(record, text) for text in texts)])
    return "\n" + align(rows)


def warn_of_high_perplexity(records: Iterable[Figures]) -> None:
    """Warn, in one line, of models whose perplexity is at least `HIGH_RATIO` times the dense model's."""
    ratios = {
        record["model"]: max(record[f"perplexity_ratio/{text}"] for text in _texts(record)) for record in records
    }
    if high := [f"{model} ({ratio:.2f}x)" for model, ratio in ratios.items() if ratio >= HIGH_RATIO]:
        logger.warning(
            "perplexity is much higher than the dense model's: %s; remove less, calibrate on more text "
            "(--num-samples), or train the model with ffp recover",
            ", ".join(high),
        )


def _texts(record: Figures) -> list[str]:
    return [key.partition("/")[2] for key in record if key.startswith("perplexity/")]


def _perplexity(record: Figures, text: str) -> str:
    ratio = "" if record["role"] in ("dense", "teacher") else f" ({record[f'perplexity_ratio/{text}']:.2f}x)"
    return f"{record[f'perplexity/{text}']:,.2f}{ratio}"


def _mib(record: Figures) -> str:
    return f"{record['weight_bytes'] / MIB:,.1f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

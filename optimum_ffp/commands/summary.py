"""What `ffp prune` and `ffp recover` print at the end."""

import logging
from collections.abc import Callable, Iterable, Sequence

from ..config.budgets import format_value
from ..evaluation.table import MIB, align, format_rows
from .records import Figures


logger = logging.getLogger(__name__)
# Ratio of the perplexity to the dense model's that a prune warns of.
HIGH_RATIO = 1.5
# Maximum characters of a sample.
WIDTH = 100
# Entries of the record of a prune to print as they are.
NOTES = ("vocabulary", "experts", "removed_whole", "budget", "search")


def summarize(records: Sequence[Figures], next_step: str) -> str:
    """Format the size and quality of a model, from its record, that of the model before it, and the dense model's."""
    result = records[0]
    # The teacher of a recovery may be another model.
    dense = {name: result[name] / (1 - result["model_sparsity"]) for name in ("parameters", "weight_bytes")}
    sparsity = f"sparsity {_percent(result['sparsity'])}, " if result["sparsity"] else ""
    removed = f"{sparsity}{_percent(result['model_sparsity'])} of the whole model"
    rows = [
        ["size", f"{dense['parameters']:,.0f} -> {result['parameters']:,} parameters; {removed}"],
        ["weights", f"{_mib(dense)} -> {_mib(result)} MiB, {result['dtype']}"],
        *([name.replace("_", " "), result[name]] for name in NOTES if name in result),
        ["perplexity", _by_text(records, _perplexity)],
        # Records of earlier versions have none.
        *([["bits per byte", _by_text(records, _bits)]] if f"bits_per_byte/{_texts(result)[0]}" in result else []),
        *_stages(result),
        *_sample(records),
        ["saved in", f"{result['model']}, with report.html"],
        ["next step", next_step],
    ]
    return "\n" + format_rows(rows)


def _by_text(records: Sequence[Figures], show: Callable[[Figures, str], str]) -> str:
    """Format what `show` returns for every model, from dense to final, and text."""
    return "; ".join(
        ", ".join(f"{record['role']} {show(record, text)}" for record in reversed(records)) + f" on {text}"
        for text in _texts(records[0])
    )


def _stages(record: Figures) -> list[list[str]]:
    """Return a row with the figures on held-out windows after every stage of a calibration, if it compared several."""
    stages = [name.partition("/")[2] for name in record if name.startswith("held_out_perplexity/")]
    if not stages:
        return []
    texts = [
        f"{one} {record[f'held_out_perplexity/{one}']:,.2f} ({record[f'held_out_divergence/{one}']:.4f})"
        for one in stages
    ]
    return [["calibration", f"held-out perplexity (divergence): {', '.join(texts)}; kept: {record['calibration']}"]]


def _sample(records: Sequence[Figures]) -> list[list[str]]:
    """Return a row with the first prompt of the samples, if there are any, and one with what each model writes."""
    key = next((name for name in records[0] if name.startswith("sample/")), "")
    written = [[f"- {one['role']}", " ".join(one[key].split())[:WIDTH]] for one in reversed(records) if key in one]
    return [["sample", key.partition("/")[2]], *written] if key else []


def sweep_table(records: Sequence[Figures]) -> str:
    """Format a table of the pruned models of a sweep and, as the last record, of the dense model."""
    *pruned, dense = records
    texts = _texts(dense)
    # The other limits have a column already.
    options = [name for name in ("vocabulary", "memory", "kv_cache", "speedup") if f"reached/{name}" in pruned[0]]
    rows = [["", "blocks", "model", "parameters", "MiB", *options, *(f"perplexity, {text}" for text in texts)]]
    for record in (dense, *pruned):
        removed = [f"-{_percent(record[name])}" for name in ("sparsity", "model_sparsity") if record.get(name)]
        sizes = [f"{record['parameters']:,}", _mib(record)]
        limited = [pruned[0][f"dense/{name}"] if record is dense else record[f"reached/{name}"] for name in options]
        sizes += map(format_value, options, limited)
        rows.append(
            [record["model"], *["", "", *removed][-2:], *sizes, *(_perplexity(record, text) for text in texts)]
        )
    return "\n" + align(rows)


def warn_of_perplexity(records: Iterable[Figures]) -> None:
    """Warn of models whose perplexity is at least `HIGH_RATIO` times the dense model's, or lower."""
    ratios = [(one["model"], text, one[f"perplexity_ratio/{text}"]) for one in records for text in _texts(one)]
    if high := [f"{model} ({ratio:.2f}x on {text})" for model, text, ratio in ratios if ratio >= HIGH_RATIO]:
        logger.warning(
            "perplexity is much higher than the dense model's: %s; remove less, calibrate on more text "
            "(--num-samples), or train the model with ffp recover",
            ", ".join(high),
        )
    if low := [f"{model} on {text}" for model, text, ratio in ratios if ratio < 1]:
        logger.warning(
            "perplexity is lower than the dense model's: %s; the model has adapted to this text and may answer worse: "
            "look at the samples in its README.md, and measure other text with ffp evaluate --dataset OTHER_TEXT",
            ", ".join(low),
        )


def _texts(record: Figures) -> list[str]:
    return [key.partition("/")[2] for key in record if key.startswith("perplexity/")]


def _perplexity(record: Figures, text: str) -> str:
    ratio = "" if record["role"] in ("dense", "teacher") else f" ({record[f'perplexity_ratio/{text}']:.2f}x)"
    return f"{record[f'perplexity/{text}']:,.2f}{ratio}"


def _bits(record: Figures, text: str) -> str:
    return f"{record[f'bits_per_byte/{text}']:.3f}"


def _mib(record: Figures) -> str:
    return f"{record['weight_bytes'] / MIB:,.1f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

"""What `ffp prune` and `ffp recover` print: plans and summaries."""

import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..checkpoint.pushing import push_checkpoint
from ..config.budgets import format_value
from ..errors import FFPError
from ..evaluation.table import MIB, align
from ..planning.estimate import Estimate, format_bytes
from ..planning.preflight import free_disk
from ..utils import processes
from ..utils.resume import begin_work
from .errors import USER_ERROR
from .records import Figures, format_rows, write_records


logger = logging.getLogger(__name__)
# Ratio of the perplexity to the dense model's that a prune warns of.
HIGH_RATIO = 1.5
# Entries of the record of a prune to print as they are.
NOTES = ("experts", "removed_whole", "budget", "search")


def show_plan(command: str, estimate: Estimate, folder: str, problems: Iterable[FFPError], file: str | None) -> None:
    """Print required and available resources, also to `--json FILE`; exit with code 2 if there are problems."""
    found = [*map(str, problems)]
    record = {"command": command, "role": "plan", "model": folder, "tokens": estimate.tokens}
    record |= {"warnings": "\n".join(estimate.warnings), "problems": "\n".join(found)}
    rows = {"budget": "; ".join(estimate.budget)} if estimate.budget else {}
    needs = estimate.memory | {"disk": (estimate.disk, free_disk(folder))}
    for name, (needed, available) in needs.items():
        rows[name] = f"{format_bytes(needed)} needed, {format_bytes(available)} available"
        record |= {f"needed_bytes/{name}": needed, f"available_bytes/{name}": available}
    if estimate.calibration:
        rows["calibration"] = estimate.calibration + (f", by LoRA of rank {estimate.lora}" if estimate.lora else "")
        record |= {"calibration": estimate.calibration, "lora": estimate.lora}
        rows["offload"] = record["offload"] = estimate.offload
    rows["tokens"] = f"at most {estimate.tokens:,}, plus those of the evaluation"
    if estimate.quantized:
        sizes = " and ".join(f"{format_bytes(size)} in {name}" for name, size in estimate.quantized.items())
        rows["quantizing"] = f"the dense weights alone would take about {sizes}"
        record |= {f"quantized_bytes/{name}": size for name, size in estimate.quantized.items()}
    write_records(file, [record])
    warnings = [f"warning: {warning}" for warning in estimate.warnings]
    print("\n".join([format_rows(rows.items()), *warnings, *(f"problem: {problem}" for problem in found)]))
    if found:
        sys.exit(USER_ERROR)


def begin(estimate: Estimate, problems: Iterable[FFPError], work: Path, resume: bool) -> None:
    """Raise the first problem, print warnings, and prepare the work folder."""
    if processes.is_main():
        for problem in problems:
            raise problem
        for warning in estimate.warnings:
            logger.warning(warning)
        begin_work(work, resume)


def end_finished(folders: Sequence[str], work: Path, repositories: Sequence[str], private: bool | None) -> None:
    """Say that a resumed command has finished before, clean up after a killed process, and upload."""
    if processes.is_main():
        begin_work(work, resume=False)
        print(f"already finished, nothing to do: {', '.join(folders)}; start over with --overwrite")
    upload(folders, repositories, private)


def upload(folders: Sequence[str], repositories: Sequence[str], private: bool | None) -> None:
    """Upload folders to repositories, if there are any, and print the URLs."""
    if processes.is_main():
        for folder, repository in zip(folders, repositories):
            print(f"uploaded: {push_checkpoint(folder, repository, private=private)}")


def summarize(records: Sequence[Figures], next_step: str) -> str:
    """Format the size and quality of a model, how its policy was found, the stages of its calibration and a command.

    The records are those of the result, of the model before it, if that is not the dense one, and of the dense model.
    """
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

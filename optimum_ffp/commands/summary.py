"""What `ffp prune` and `ffp recover` print: plans, summaries, and details with `--log-level debug`."""

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..checkpoint.pushing import push_checkpoint
from ..checkpoint.recovered import RecoveryRecord
from ..checkpoint.result import PruningResult
from ..config.texts import TextMix
from ..data import describe_windows
from ..errors import FFPError
from ..evaluation.table import MIB, align
from ..modeling.auto import is_pruned
from ..planning.estimate import Estimate, format_bytes
from ..planning.preflight import free_disk
from ..utils import processes
from ..utils.resume import begin_work
from .errors import USER_ERROR
from .records import Record


logger = logging.getLogger(__name__)
# Ratio of the perplexity to the dense model's that a prune warns of.
HIGH_RATIO = 1.5


def show_plan(estimate: Estimate, folder: str | os.PathLike, problems: Sequence[FFPError]) -> None:
    """Print required and available resources; exit with code 2 if there are problems."""
    needs = estimate.memory | {"disk": (estimate.disk, free_disk(folder))}
    rows = [
        [name, f"{format_bytes(needed)} needed, {format_bytes(free)} available"]
        for name, (needed, free) in needs.items()
    ]
    rows.append(["tokens", f"at most {estimate.tokens:,}, plus those of the evaluation"])
    rows.append(["offload", estimate.offload])
    warnings = [f"warning: {warning}" for warning in estimate.warnings]
    print("\n".join([_lines(rows), *warnings, *(f"problem: {problem}" for problem in problems)]))
    if problems:
        sys.exit(USER_ERROR)


def begin(estimate: Estimate, problems: Iterable[FFPError], work: Path, resume: bool) -> None:
    """Raise the first problem, print warnings, and prepare the work folder."""
    if processes.is_main():
        for problem in problems:
            raise problem
        for warning in estimate.warnings:
            logger.warning(warning)
        begin_work(work, resume)


def end_finished(folders: Sequence[str], work: Path) -> None:
    """Say that the results of a resumed command are there, and delete what a killed process may have left beside."""
    if processes.is_main():
        begin_work(work, resume=False)
        print(f"finished already: {', '.join(folders)}; start over with --overwrite")


def upload(folders: Sequence[str], repositories: Sequence[str], private: bool | None) -> None:
    """Upload folders to repositories, if there are any, and print the URLs."""
    if processes.is_main():
        for folder, repository in zip(folders, repositories):
            print(f"uploaded: {push_checkpoint(folder, repository, private=private)}")


def summarize(records: Sequence[Record], next_step: str) -> str:
    """Format the size and quality of a model in five lines.

    Args:
        records: Records of the result, of the model before it, if that is not the dense one, and of the dense model.
        next_step: A command.
    """
    result, *_, dense = records
    removed = f"{_percent(result['sparsity'])} of the blocks and {_percent(result['model_sparsity'])} of the model"
    perplexities = [
        ", ".join(f"{record['role']} {_perplexity(record, text)}" for record in reversed(records)) + f" on {text}"
        for text in _texts(result)
    ]
    rows = [
        ["size", f"{dense['parameters']:,} -> {result['parameters']:,} parameters; {removed} removed"],
        ["weights", f"{_mib(dense)} -> {_mib(result)} MiB, {result['dtype']}"],
        ["perplexity", "; ".join(perplexities)],
        ["saved in", f"{result['model']}, with report.html"],
        ["next step", next_step],
    ]
    return "\n" + _lines(rows)


def sweep_table(records: Sequence[Record]) -> str:
    """Format a table of the pruned models of a sweep and, as the last record, of the dense model."""
    *pruned, dense = records
    texts = _texts(dense)
    rows = [["", "blocks", "model", "parameters", "MiB", *(f"perplexity, {text}" for text in texts)]]
    for record in (dense, *pruned):
        removed = [f"-{_percent(record[name])}" for name in ("sparsity", "model_sparsity") if name in record]
        sizes = [f"{record['parameters']:,}", _mib(record)]
        rows.append([record["model"], *(removed or ["", ""]), *sizes, *(_perplexity(record, text) for text in texts)])
    return "\n" + align(rows)


def warn_of_high_perplexity(records: Iterable[Record]) -> None:
    """Warn, in one line, of models whose perplexity is at least `HIGH_RATIO` times the dense model's."""
    ratios = {
        record["model"]: max(record[f"perplexity_ratio/{text}"] for text in _texts(record)) for record in records
    }
    if high := [f"{model} ({ratio:.2f}x)" for model, ratio in ratios.items() if ratio >= HIGH_RATIO]:
        logger.warning(
            "perplexity is much higher than the dense model's: %s; lower --sparsity, calibrate on more text "
            "(--num-samples), or train the model with ffp recover",
            ", ".join(high),
        )


def log_prune(result: PruningResult, folder: str) -> None:
    """Log the windows, time per stage and other details of a prune, and the code to load the model."""
    config, search, seconds, peaks = result.config, result.search, result.cost.seconds, result.cost.peak_bytes
    rows = [
        ["searched with", f"{config.method}, {search.candidate_evaluations} candidates"],
        ["calibrated with", config.calibration],
        ["calibrated on", describe_windows(search.calibrated_on, config.num_samples)],
        ["searched on", describe_windows(search.windows, config.search_samples)],
    ]
    for windows, figures in result.tests:
        rows.append(["measured on", describe_windows(windows.describe(), config.eval_samples)])
        rows += [[f"perplexity, {name}", f"{value:.4f}"] for name, value in figures.items()]
    rows += [
        ["tokens", f"{result.tokens:,}, in forward passes of the model"],
        *([f"time, {name}", f"{value:.1f} s"] for name, value in seconds.items()),
        ["peak memory", f"{format_bytes(max(peaks.values()))}, in {max(peaks, key=peaks.get)}"],
    ]
    _log(rows, folder, is_pruned(result.model.config))


def log_recovery(record: RecoveryRecord, folder: str, has_code: bool) -> None:
    """Log the tokens, held-out figures and other details of a recovery, and the code to load the model.

    Args:
        record: Record of the recovery.
        folder: Folder of the checkpoint.
        has_code: Whether the checkpoint has custom modeling code.
    """
    first, last = record.curve[0], record.kept
    rows = [
        ["trained on", f"{record.tokens:,} tokens of {TextMix.parse(record.options['dataset']).describe()}"],
        [
            "steps",
            f"{record.curve[-1]['step']} of {record.windows_per_step} windows of {record.window_length} tokens",
        ],
        *([["weights", f"the best, after {last['tokens']:,} tokens"]] if last != record.curve[-1] else []),
        *(
            [f"passes over {TextMix.parse(name).describe()}", f"{count:.2f}"]
            for name, count in record.passes.items()
            if count > 1
        ),
        ["divergence, held out", f"{first['kl']:.4f} -> {last['kl']:.4f} nats per token"],
        ["perplexity, held out", f"{first['perplexity']:.4f} -> {last['perplexity']:.4f}"],
        ["held out", describe_windows(record.held_out)],
        *(["measured on", describe_windows(test)] for test in record.tests),
        ["tokens of the training", f"{record.all_tokens:,}, in forward passes of a model"],
        ["time of the training", f"{record.seconds:.1f} s"],
    ]
    _log(rows, folder, has_code)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Format names and values."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _log(rows: list[list[str]], folder: str, has_code: bool) -> None:
    arguments = json.dumps(folder, ensure_ascii=False) + ", trust_remote_code=True" * has_code
    rows.append(["load it with", f"transformers.AutoModelForCausalLM.from_pretrained({arguments})"])
    for line in _lines(rows).splitlines():
        logger.debug(line)


def _texts(record: Record) -> list[str]:
    return [key.partition("/")[2] for key in record if key.startswith("perplexity/")]


def _perplexity(record: Record, text: str) -> str:
    ratio = "" if record["role"] in ("dense", "teacher") else f" ({record[f'perplexity_ratio/{text}']:.2f}x)"
    return f"{record[f'perplexity/{text}']:,.2f}{ratio}"


def _mib(record: Record) -> str:
    return f"{record['weight_bytes'] / MIB:,.1f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

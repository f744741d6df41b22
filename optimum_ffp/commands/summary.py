"""Tables printed by `ffp prune` and `ffp recover`."""

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..checkpoint.recovered import RecoveryRecord
from ..checkpoint.result import PruningResult
from ..config.texts import TextMix
from ..data import describe_windows
from ..errors import FFPError
from ..modeling.auto import is_pruned
from ..planning.estimate import Estimate, gib
from ..planning.preflight import free_disk
from ..utils import processes
from ..utils.folders import read_record
from ..utils.resume import begin_work
from .errors import USER_ERROR


logger = logging.getLogger(__name__)


def show_plan(estimate: Estimate, folder: str | os.PathLike, problems: Sequence[FFPError]) -> None:
    """Print required and available resources; exit with code 2 if there are problems."""
    needs = estimate.memory | {"disk": (estimate.disk, free_disk(folder))}
    rows = [(name, f"{gib(needed)} needed, {gib(free)} available") for name, (needed, free) in needs.items()]
    rows.append(("tokens", f"at most {estimate.tokens:,}, plus those of the evaluation"))
    rows.append(("offload", estimate.offload))
    warnings = [f"warning: {warning}" for warning in estimate.warnings]
    print("\n".join([*_table(rows), *warnings, *(f"problem: {problem}" for problem in problems)]))
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


def prune_summary(result: PruningResult, folder: str) -> str:
    """Format the result of a prune, its windows, time per stage, and the code to load the model."""
    config, search, seconds, peaks = result.config, result.search, result.cost.seconds, result.cost.peak_bytes
    rows = [
        ("calibrated on", describe_windows(search.calibrated_on, config.num_samples)),
        ("searched on", describe_windows(search.windows, config.search_samples)),
        *(("measured on", describe_windows(windows.describe(), config.eval_samples)) for windows, _ in result.tests),
        ("tokens", f"{result.tokens:,}, in forward passes of the model"),
        *((f"time, {name}", f"{value:.1f} s") for name, value in seconds.items()),
        ("peak memory", f"{max(peaks.values()) / 2**30:.2f} GiB, in {max(peaks, key=peaks.get)}"),
        ("saved in", folder),
    ]
    loads = _load_lines(folder, is_pruned(result.model.config))
    return "\n".join(["", repr(result), *_table(rows), *loads])


def recovery_summary(record: RecoveryRecord, folder: str, has_code: bool) -> str:
    """Format the tokens, divergence and perplexities of a recovery, and the code to load the model.

    Args:
        record: Record of the recovery.
        folder: Folder of the checkpoint.
        has_code: Whether the checkpoint has custom modeling code.
    """
    first, last = record.curve[0], record.kept
    names = {} if len(read_record(folder)["recovery"]) == 1 else {"pruned": "before this training"}
    rows = [
        ("trained on", f"{record.tokens:,} tokens of {TextMix.parse(record.options['dataset']).describe()}"),
        (
            "steps",
            f"{record.curve[-1]['step']} of {record.windows_per_step} windows of {record.window_length} tokens",
        ),
        *([("weights", f"the best, after {last['tokens']:,} tokens")] if last != record.curve[-1] else []),
        *(
            (f"passes over {TextMix.parse(name).describe()}", f"{count:.2f}")
            for name, count in record.passes.items()
            if count > 1
        ),
        ("divergence, held out", f"{first['kl']:.4f} -> {last['kl']:.4f} nats per token"),
        ("perplexity, held out", f"{first['perplexity']:.4f} -> {last['perplexity']:.4f}"),
        ("held out", describe_windows(record.held_out)),
    ]
    for test, figures in record.figures:
        label = f" on {TextMix.parse(test['dataset']).describe()}" if len(record.tests) > 1 else ""
        rows += [(f"perplexity{label}, {names.get(name, name)}", f"{value:.4f}") for name, value in figures.items()]
        rows.append(("measured on", describe_windows(test)))
    rows += [
        ("tokens of the training", f"{record.all_tokens:,}, in forward passes of a model"),
        ("time of the training", f"{record.seconds:.1f} s"),
        ("saved in", folder),
    ]
    return "\n".join([*_table(rows), *_load_lines(folder, has_code)])


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of a two-column table, after an empty line."""
    width = max(len(name) for name, _ in rows)
    return ["", *(f"{name:<{width}}  {value}" for name, value in rows)]


def _load_lines(folder: str, has_code: bool) -> list[str]:
    """Return the code that loads a checkpoint."""
    arguments = json.dumps(folder, ensure_ascii=False) + ", trust_remote_code=True" * has_code
    return [
        *("", "Load it with", "    from transformers import AutoModelForCausalLM"),
        f"    model = AutoModelForCausalLM.from_pretrained({arguments})",
    ]

"""Flat records of models, for `--json` and the summaries. All commands use the same keys.

`command`, `role` and `model` say what a record is about. Where there are several figures of a kind, keys say what each
belongs to: `perplexity/wikitext2`, `seconds/search`, `version/torch`. The first record is that of the result, and has
the tokens, time and peak memory of the command.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checkpoint.result import PruningResult, final, package_versions
from ..checkpoint.view import removed_whole, view_experts
from ..config.budgets import describe_limits
from ..config.prune import GRADIENT_COST
from ..config.texts import Text, TextMix
from ..errors import convert_errors, one_line
from ..evaluation import Evaluation
from ..evaluation.record import text_records
from ..evaluation.table import format_rows
from ..hub.record import require_record
from ..recovery.recovery import FFPRecovery
from ..utils.folders import check_file, expand
from ..utils.json import write_json
from ..utils.precision import dtype_name
from ..utils.profiling import StageMeter


logger = logging.getLogger(__name__)
Figures = dict[str, Any]
SPEEDS = ("prefill", "decode")
# Keys of the figures of `evaluate` that are kept as they are.
EVALUATED = ("dtype", "parameters", "weight_bytes", "kv_cache_bytes", "sparsity", "model_sparsity")
# Figures of a text and of held-out windows by key.
MEASURED = {"windows": "windows", "window_length": "window_length", "perplexity_ratio_error": "ratio_error"}
MEASURED |= {"divergence": "divergence", "agreement": "agreement"}
HELD_OUT = {"divergence": "kl", "perplexity": "perplexity"}
# First bytes of a file of records.
BEGINNING = b'[{"command":'


def check_json(file: str | None) -> None:
    """Raise `FFPError` if `--json FILE` was given and can't be written, or is another file that exists."""
    if file:
        check_file(file, BEGINNING, overwrite=True)


def write_records(file: str | None, records: Sequence[Figures]) -> None:
    """Log records for `--log-level debug`, and write them to `--json FILE`, if given, with versions of packages."""
    for record in records:
        for line in format_rows(record.items()).splitlines():
            logger.debug(line)
    if file:
        versions, path = {f"version/{name}": number for name, number in package_versions().items()}, expand(file)
        with convert_errors(lambda error: f"{file} can't be written: {one_line(error)}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, [record | versions for record in records])


def prune_records(result: PruningResult, folder: str) -> list[Figures]:
    """Return the records of a pruned model, saved in `folder`, and of its dense model."""
    tests = [(windows.describe(), figures | {"pruned": final(figures)}) for windows, figures in result.tests]
    pruned = _model("prune", "pruned", folder, result.parameters, result.model.dtype)
    pruned |= {"sparsity": result.policy.sparsity, "model_sparsity": result.model_sparsity}
    for limit in result.search.budget:
        pruned |= {f"{name}/{limit['option']}": limit[name] for name in ("asked", "reached", "dense")}
    notes = {"budget": describe_limits(result.search.budget), "search": result.search.note}
    notes["removed_whole"] = removed_whole(result.policy.rows)
    if experts := view_experts(result.policy.rows, result.experts):
        notes["experts"] = f"{experts['summary']}; {experts['routing']}"
    pruned |= {name: note for name, note in notes.items() if note}
    for stage in result.calibration.get("stages", ()):
        pruned |= {f"held_out_{name}/{stage['stage']}": stage[key] for name, key in HELD_OUT.items()}
    pruned |= {"calibration": result.calibration.get("kept", result.plan.calibration)}
    pruned |= _perplexities(tests, "pruned") | {"tokens": result.tokens} | _cost(result.cost)
    dense = _model("prune", "dense", result.base_model, result.dense_parameters, result.model.dtype)
    records = [pruned, dense | _perplexities(tests, "dense")]
    return [one | {f"sample/{row['prompt']}": row[one["role"]] for row in result.samples} for one in records]


def recovery_records(recovery: FFPRecovery, folder: str, meter: StageMeter) -> list[Figures]:
    """Return the records of a recovered model, saved in `folder`, of the pruned one and of its teacher."""
    result, student, teacher = recovery.finished, recovery.student, recovery.teacher
    tests = [(test, test) for test in result.tests]
    records = [
        _model("recover", role, name, model.num_parameters(), student.dtype) | _perplexities(tests, role)
        for role, name, model in (
            ("recovered", folder, student),
            ("pruned", result.source, student),
            ("dense", result.teacher, teacher),
        )
    ]
    prune = require_record(folder)
    for record, held_out in zip(records, (result.kept, result.curve[0])):
        record |= {"sparsity": prune.policy.sparsity, "model_sparsity": prune.provenance.model_sparsity}
        record |= {f"held_out_{name}": held_out[key] for name, key in HELD_OUT.items()}
    if experts := view_experts(prune.policy.units, prune.provenance.experts):
        records[0]["experts"] = experts["summary"]
    records[0] |= {"tokens": (1 + GRADIENT_COST) * result.tokens, "trained_tokens": result.tokens} | _cost(meter)
    records[0] |= {f"sample/{prompt}": text for prompt, text in result.samples.items()}
    if result.dense_teacher:
        records[-1] |= {f"sample/{row['prompt']}": row["dense"] for row in prune.provenance.samples}
    records[-1]["role"] = "dense" if result.dense_teacher else "teacher"
    return records


def evaluation_records(evaluation: Evaluation, meter: StageMeter) -> list[Figures]:
    """Return the records of all models of an evaluation, of which `meter` has the time and peak memory."""
    records, references = [], text_records(evaluation.get("baseline", {}))
    for role, measured in evaluation.items():
        record = {"command": "evaluate", "role": role, "model": measured["name"]}
        record |= {name: measured[name] for name in EVALUATED if name in measured}
        tests = [(text, {"model": text["perplexity"]}) for text in text_records(measured)]
        for (text, figures), reference in zip(tests, references):
            if text["comparable"]:
                figures["dense"] = reference["perplexity"]
        record |= _perplexities(tests, "model")
        record |= {f"{name}_tokens_per_second": measured["speed"][name] for name in SPEEDS if "speed" in measured}
        for task in measured.get("tasks", ()):
            for suffix, values in (("", task["metrics"]), ("_stderr", task["stderr"])):
                record |= {f"{task['task']}/{name}{suffix}": value for name, value in values.items()}
        records.append(record)
    records[0] |= _cost(meter)
    return records


def _model(command: str, role: str, model: str, parameters: int, dtype: torch.dtype) -> Figures:
    size = {"parameters": parameters, "weight_bytes": parameters * dtype.itemsize}
    return {"command": command, "role": role, "model": model, "dtype": dtype_name(dtype)} | size


def _perplexities(tests: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]], model: str) -> Figures:
    """Return what was measured on every text: perplexity, its ratio to that of the dense model, and more."""
    record, names = {}, TextMix(tuple(Text(windows["dataset"]) for windows, _ in tests)).published_names
    for text, (windows, figures) in zip(names, tests):
        record[f"perplexity/{text}"] = figures[model]
        if "dense" in figures:
            record[f"perplexity_ratio/{text}"] = figures[model] / figures["dense"]
        record |= {f"{key}/{text}": windows[name] for key, name in MEASURED.items() if name in windows}
    return record


def _cost(meter: StageMeter) -> Figures:
    record = {"seconds": sum(meter.seconds.values()), "peak_bytes": max(meter.peak_bytes.values())}
    for name, values in (("seconds", meter.seconds), ("peak_bytes", meter.peak_bytes)):
        record |= {f"{name}/{stage}": value for stage, value in values.items()}
    return record

"""Flat records of models, for `--json` and the summaries. All commands use the same keys.

`command`, `role` and `model` say what a record is about. Where there are several figures of a kind, keys say what each
belongs to: `perplexity/wikitext2`, `seconds/search`, `version/torch`. The first record is that of the result, and has
the tokens, time and peak memory of the command.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checkpoint.result import final, package_versions
from ..checkpoint.view import describe_vocabulary, removed_whole, view_experts
from ..config.budgets import describe_limits
from ..config.prune import GRADIENT_COST
from ..config.texts import Text, TextMix
from ..errors import convert_errors, one_line
from ..evaluation import Evaluation, bits_per_byte
from ..evaluation.record import text_records
from ..evaluation.table import format_rows
from ..utils.folders import check_file, expand
from ..utils.json import write_json
from ..utils.profiling import StageMeter
from ..utils.record import Record


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


def prune_records(record: Record, folder: str, dense_id: str) -> list[Figures]:
    """Return the records of a pruned model, from the one saved in `folder`, and of its dense model."""
    found, units, budget = record.provenance, record.policy.units, record.search.budget
    tests = [test | {"pruned": final(test)} for test in found.tests]
    pruned = _model("prune", "pruned", folder, found.parameters["pruned"], found.dtype)
    pruned |= {"sparsity": record.policy.sparsity, "model_sparsity": found.model_sparsity}
    for limit in budget:
        pruned |= {f"{name}/{limit['option']}": limit[name] for name in ("asked", "reached", "dense")}
    notes = {"budget": describe_limits(budget), "search": record.search.note, "removed_whole": removed_whole(units)}
    notes["vocabulary"] = describe_vocabulary(found.vocabulary)
    if experts := view_experts(units, found.experts):
        notes["experts"] = f"{experts['summary']}; {experts['routing']}"
    pruned |= {name: note for name, note in notes.items() if note}
    for stage in found.held_out.get("stages", ()):
        pruned |= {f"held_out_{name}/{stage['stage']}": stage[key] or math.nan for name, key in HELD_OUT.items()}
    pruned |= {"calibration": found.held_out.get("kept", record.options["calibration"])}
    pruned |= _perplexities(tests, "pruned") | {"tokens": found.tokens_read} | _cost(found.seconds, found.peak_gib)
    dense = _model("prune", "dense", dense_id, found.parameters["dense"], found.dtype)
    records = [pruned, dense | _perplexities(tests, "dense")]
    return [one | {f"sample/{row['prompt']}": row[one["role"]] for row in found.samples} for one in records]


def recovery_records(prune: Record, folder: str, pruned_id: str, teacher_id: str, parameters: int) -> list[Figures]:
    """Return the records of a recovered model, from that saved in `folder`, of the pruned one and of its teacher."""
    result, size = prune.recovery[-1], prune.provenance.parameters["pruned"]
    models = {"recovered": (folder, size), "pruned": (pruned_id, size), "dense": (teacher_id, parameters)}
    records = [
        _model("recover", role, name, count, result.dtype) | _perplexities(result.tests, role)
        for role, (name, count) in models.items()
    ]
    for record, held_out in zip(records, (result.kept, result.curve[0])):
        record |= {"sparsity": prune.policy.sparsity, "model_sparsity": prune.provenance.model_sparsity}
        record |= {f"held_out_{name}": held_out[key] or math.nan for name, key in HELD_OUT.items()}
    if experts := view_experts(prune.policy.units, prune.provenance.experts):
        records[0]["experts"] = experts["summary"]
    records[0] |= {"tokens": (1 + GRADIENT_COST) * result.tokens, "trained_tokens": result.tokens}
    records[0] |= _cost({"recovery": result.seconds}, {"recovery": result.peak_gib})
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
        tests = [text | {"model": text["perplexity"]} for text in text_records(measured)]
        for text, reference in zip(tests, references):
            if text["comparable"]:
                text["dense"] = reference["perplexity"]
        record |= _perplexities(tests, "model")
        record |= {f"{name}_tokens_per_second": measured["speed"][name] for name in SPEEDS if "speed" in measured}
        for task in measured.get("tasks", ()):
            for suffix, values in (("", task["metrics"]), ("_stderr", task["stderr"])):
                record |= {f"{task['task']}/{name}{suffix}": value for name, value in values.items()}
        records.append(record)
    records[0] |= _cost(meter.seconds, {stage: peak / 2**30 for stage, peak in meter.peak_bytes.items()})
    return records


def _model(command: str, role: str, model: str, parameters: int, dtype: str) -> Figures:
    size = {"parameters": parameters, "weight_bytes": parameters * getattr(torch, dtype).itemsize}
    return {"command": command, "role": role, "model": model, "dtype": dtype} | size


def _perplexities(tests: Sequence[Mapping[str, Any]], model: str) -> Figures:
    """Return what was measured on every text: perplexity, its ratio to the dense model's, bits per byte, and more."""
    record, names = {}, TextMix(tuple(Text(test["dataset"]) for test in tests)).published_names
    for text, test in zip(names, tests):
        # JSON lacks NaN and infinity.
        record[f"perplexity/{text}"] = perplexity = test[model] or math.nan
        if "dense" in test:
            record[f"perplexity_ratio/{text}"] = perplexity / (test["dense"] or math.nan)
        if (bits := bits_per_byte(perplexity, test)) is not None:
            record[f"bits_per_byte/{text}"] = bits
        record |= {f"{key}/{text}": test[name] for key, name in MEASURED.items() if name in test}
    return record


def _cost(seconds: Mapping[str, float], peak_gib: Mapping[str, float]) -> Figures:
    peaks = {stage: round(peak * 2**30) for stage, peak in peak_gib.items()}
    record = {"seconds": sum(seconds.values()), "peak_bytes": max(peaks.values())}
    for name, values in (("seconds", seconds), ("peak_bytes", peaks)):
        record |= {f"{name}/{stage}": value for stage, value in values.items()}
    return record

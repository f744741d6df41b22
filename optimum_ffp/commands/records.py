"""Flat records of models, for `--json` and the summaries. All commands use the same keys.

`command`, `role` and `model` say what a record is about. Where there are several figures of a kind, keys say what each
belongs to: `perplexity/wikitext2`, `seconds/search`, `version/torch`. The first record is that of the result, and has
the tokens, time and peak memory of the command.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..checkpoint.result import PruningResult, package_versions
from ..errors import FFPError
from ..evaluation import Evaluation
from ..evaluation.record import text_records
from ..planning.estimate import Estimate
from ..planning.preflight import free_disk
from ..recovery.recovery import FFPRecovery
from ..utils.folders import check_file, expand, read_record
from ..utils.json import write_json
from ..utils.precision import dtype_name
from ..utils.profiling import StageMeter


Record = dict[str, str | int | float]
SPEEDS = ("prefill", "decode")
# Keys of the figures of `evaluate` that are kept as they are.
EVALUATED = ("dtype", "parameters", "weight_bytes", "kv_cache_bytes", "sparsity", "model_sparsity")
# Figures of a text by key.
TEXT_FIGURES = {"perplexity_ratio_error": "ratio_error", "divergence": "divergence", "agreement": "agreement"}


def check_json(file: str | None) -> None:
    """Raise `FFPError` if `--json FILE` was given and can't be written, or is another file that exists."""
    if file:
        check_file(file, b'[{"command":', overwrite=True)


def write_records(file: str | None, records: Iterable[Record]) -> None:
    """Write records to `--json FILE`, if given, with the versions of packages.

    Raises:
        FFPError: If the file can't be written.
    """
    if not file:
        return
    path, versions = expand(file), {f"version/{name}": number for name, number in package_versions().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [record | versions for record in records])
    except OSError as error:
        raise FFPError(f"--json {file} can't be written: {error.strerror}") from None


def prune_records(result: PruningResult, folder: str) -> list[Record]:
    """Return the records of a pruned model and of its dense model.

    Args:
        result: Result of the prune.
        folder: Folder of the pruned model.
    """
    final = "calibrated" if "calibrated" in result.losses else "searched"
    tests = [(windows.describe(), figures) for windows, figures in result.tests]
    pruned = _model("prune", "pruned", folder, result.parameters, result.model.dtype)
    pruned |= {"sparsity": result.policy.sparsity, "model_sparsity": result.model_sparsity}
    pruned |= _perplexities(tests, final) | {"tokens": result.tokens} | _cost(result.cost)
    dense = _model("prune", "dense", result.base_model, result.dense_parameters, result.model.dtype)
    return [pruned, dense | _perplexities(tests, "dense")]


def recovery_records(recovery: FFPRecovery, folder: str, meter: StageMeter) -> list[Record]:
    """Return the records of a recovered model, of the pruned one and of its teacher.

    Args:
        recovery: The finished recovery.
        folder: Folder of the recovered model.
        meter: Time and peak memory of the recovery.
    """
    result, student, records = recovery.record, recovery.student, []
    prune = read_record(folder)
    for role, model, evaluation in (
        ("recovered", folder, result.kept),
        ("pruned", result.source, result.curve[0]),
        ("dense", result.teacher, None),
    ):
        parameters = (student if evaluation else recovery.teacher).num_parameters()
        record = _model("recover", role, model, parameters, student.dtype) | _perplexities(result.figures, role)
        if evaluation:
            record["sparsity"] = prune["policy"]["sparsity"]
            record["model_sparsity"] = prune["provenance"]["model_sparsity"]
            record["held_out_divergence"] = evaluation["kl"]
            record["held_out_perplexity"] = evaluation["perplexity"]
        records.append(record)
    records[-1]["role"] = "dense" if result.dense_teacher else "teacher"
    records[0] |= {"tokens": result.all_tokens, "trained_tokens": result.tokens} | _cost(meter)
    return records


def evaluation_records(evaluation: Evaluation, meter: StageMeter) -> list[Record]:
    """Return the records of all models of an evaluation.

    Args:
        evaluation: The evaluation.
        meter: Its time and peak memory.
    """
    records, references = [], text_records(evaluation.get("baseline", {}))
    for role, measured in evaluation.items():
        record = {"command": "evaluate", "role": role, "model": measured["name"]}
        record |= {name: measured[name] for name in EVALUATED if name in measured}
        for index, text in enumerate(text_records(measured)):
            reference = references[index]["perplexity"] if references and text["comparable"] else None
            record |= _perplexity(text, text["perplexity"], reference)
            for key, name in TEXT_FIGURES.items():
                if name in text:
                    record[f"{key}/{text['dataset']}"] = text[name]
        record |= {f"{name}_tokens_per_second": measured["speed"][name] for name in SPEEDS if "speed" in measured}
        for task in measured.get("tasks", ()):
            for suffix, values in (("", task["metrics"]), ("_stderr", task["stderr"])):
                record |= {f"{task['task']}/{name}{suffix}": value for name, value in values.items()}
        records.append(record)
    records[0] |= _cost(meter)
    return records


def plan_record(command: str, estimate: Estimate, folder: str, problems: Sequence[FFPError]) -> Record:
    """Return the record of a plan, in which problems and warnings are lines of a text."""
    needs = estimate.memory | {"disk": (estimate.disk, free_disk(folder))}
    record = {"command": command, "role": "plan", "model": folder, "tokens": estimate.tokens}
    record |= {"offload": estimate.offload, "warnings": "\n".join(estimate.warnings)}
    record["problems"] = "\n".join(map(str, problems))
    record |= {f"needed_bytes/{name}": needed for name, (needed, _) in needs.items()}
    return record | {f"available_bytes/{name}": available for name, (_, available) in needs.items()}


def _model(command: str, role: str, model: str, parameters: int, dtype: torch.dtype) -> Record:
    size = {"parameters": parameters, "weight_bytes": parameters * dtype.itemsize}
    return {"command": command, "role": role, "model": model, "dtype": dtype_name(dtype)} | size


def _perplexities(tests: Iterable[tuple[Mapping[str, Any], Mapping[str, float]]], name: str) -> Record:
    """Return the perplexities of a model, and their ratios to those of the dense model, for all texts."""
    record = {}
    for windows, figures in tests:
        record |= _perplexity(windows, figures[name], figures["dense"])
    return record


def _perplexity(windows: Mapping[str, Any], perplexity: float, reference: float | None) -> Record:
    text = windows["dataset"]
    ratio = {} if reference is None else {f"perplexity_ratio/{text}": perplexity / reference}
    sizes = {f"{name}/{text}": windows[name] for name in ("windows", "window_length")}
    return {f"perplexity/{text}": perplexity} | ratio | sizes


def _cost(meter: StageMeter) -> Record:
    record = {"seconds": sum(meter.seconds.values()), "peak_bytes": max(meter.peak_bytes.values())}
    for name, values in (("seconds", meter.seconds), ("peak_bytes", meter.peak_bytes)):
        record |= {f"{name}/{stage}": value for stage, value in values.items()}
    return record

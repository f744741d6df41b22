"""View of a checkpoint's record for the card, the report and the plots."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..allocation.policy import UnitSize
from ..config.budgets import describe_limits
from ..config.choices import KINDS
from ..config.texts import TextMix
from ..data.samples import NEW_TOKENS
from ..evaluation import bits_per_byte
from ..hub.naming import model_name
from ..utils.record import Record, RecoveryRecord


# Names of models in records of perplexities, from dense to final.
FIGURES = ("dense", "searched", "calibrated", "pruned", "recovered")
# Names of what units lose.
REMOVED = {"attention": "attention heads", "ffn": "FFN channels"}
# Test tokens below which a perplexity is marked.
SMALL_SAMPLE = 20 * 2048
NAMED = 4


def view_record(record: Record) -> dict[str, Any]:
    """Return the entries of a record to show, and values derived from them."""
    provenance, units = record.provenance, record.policy.units
    source = provenance.base_model
    base = record.options["base_model"] or source
    on_hub = base != source or provenance.is_on_hub
    itemsize = getattr(torch, provenance.dtype).itemsize
    removed, vocabulary = f"{100 * record.policy.sparsity:.0f} % of the blocks pruned", provenance.vocabulary
    if vocabulary:
        tokens = f"{vocabulary['dense'] - vocabulary['pruned']:,} of {vocabulary['dense']:,} tokens"
        removed = f"{tokens} and {removed}" if record.policy.sparsity else f"{tokens} pruned"
    experts = view_experts(units, provenance.experts)
    if experts:
        removed = f"{experts['dense'] - experts['kept']} of {experts['dense']} experts pruned"
    dataset = record.search.calibrated_on["dataset"] if provenance.given_data else record.options["dataset"]
    smaller = {row.unit for row in units if 0 < row.kept < row.items}
    return vars(record) | {
        # When candidates are evaluated.
        "search_stage": "before calibration" if record.options["reward"] == "pruned" else "after ridge regression",
        "title": f"{model_name(base)}, {removed} ({100 * provenance.model_sparsity:.1f} % of the model)",
        "base": base,
        "source": source,
        "base_url": f"https://huggingface.co/{base}" if on_hub else None,
        "weights": {name: count * itemsize / 2**20 for name, count in provenance.parameters.items()},
        "removed": " and ".join(name for kind, name in REMOVED.items() if kind in smaller),
        "experts": experts,
        "vocabulary": describe_vocabulary(vocabulary),
        "budget": describe_limits(record.search.budget),
        "layers_differ": _layers_differ(units),
        "removed_whole": removed_whole(units),
        "prunes_attention": any(row.unit == "attention" and row.group != "all_heads" for row in units),
        "tests": [_view_test(test) for test in provenance.tests],
        "samples": provenance.samples,
        "sample_tokens": NEW_TOKENS,
        "data": dataset,
        "plots": {name.removesuffix(".png"): name for name in record.files if name.endswith(".png")},
        "command": " ".join(_command(record)),
        "recoveries": [_view_recovery(step, record) for step in record.recovery],
    }


def _view_test(test: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: test[name] for name in FIGURES if name in test}
    dense, final = figures["dense"], [*figures.values()][-1]
    bits = {name: bits_per_byte(value, test) for name, value in (figures | {"final": final}).items()}
    is_small = test["windows"] * test["window_length"] < SMALL_SAMPLE
    return dict(test) | {
        "figures": figures,
        "final": final,
        "bits": bits if "bytes" in test else None,
        "ratio": final and dense and final / dense,
        "note": f" Small sample (fewer than {SMALL_SAMPLE:,} tokens), not a benchmark." if is_small else "",
    }


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` decimals. `None` stands for NaN and infinity, which JSON lacks."""
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else "not finite"


def _view_recovery(step: RecoveryRecord, record: Record) -> dict[str, Any]:
    command = f"optimum-cli ffp recover -m {shlex.quote(step.source)} OUT"
    provenance, samples = record.provenance, step.samples
    if step.teacher != provenance.base_model or not provenance.is_on_hub:
        command += f" --teacher {shlex.quote(step.teacher)}"
    return {
        "record": step,
        "samples": [
            row | {"recovered": samples[row["prompt"]]} for row in provenance.samples if row["prompt"] in samples
        ],
        "tests": [_view_test(test) for test in step.tests],
        "command": " ".join([command, "--config ffp_config.json", *_local_texts(step.options)]),
    }


def _command(record: Record) -> Iterator[str]:
    """Yield the parts of the command that reproduces a prune."""
    provenance = record.provenance
    source = provenance.pruned_from or f"{provenance.base_model}@{provenance.revision or ''}"
    model, _, revision = source.partition("@")
    yield f"optimum-cli ffp prune -m {shlex.quote(model)} OUT --config ffp_config.json"
    yield from _local_texts(record.options)
    for option in KINDS:
        # A module of another package, which a config file alone doesn't import.
        if "." in (name := record.options.get(option) or ""):
            yield f"--{option.replace('_', '-')} {shlex.quote(name)}"
    if revision:
        yield f"--revision {revision}"
    yield f"--dtype {provenance.dtype}"
    if provenance.trust_remote_code:
        yield "--trust-remote-code"
    if record.search.warm_start:
        yield f"--warm-start {shlex.quote(record.search.warm_start)}"


def _local_texts(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options for local texts, whose paths may differ."""
    for option in ("dataset", "eval_dataset", "vocabulary_dataset"):
        if options.get(option) and any(text.is_local for text in TextMix.parse(options[option])):
            yield f"--{option.replace('_', '-')} {shlex.quote(options[option])}"


def removed_whole(units: Sequence[UnitSize]) -> str:
    """Describe what rows of a policy remove entirely, such as `layers 3 and 4, the FFN of layer 7`; empty if nothing.

    Layers are numbered as in the dense model, from 0.
    """
    kept, gone = _kept_layers(units), [row for row in units if not row.kept]
    parts = {
        "": [row.layer for row in gone if row.unit == "ffn" and row.layer not in kept],
        "the attention of ": [row.layer for row in gone if row.unit == "attention" and row.layer in kept],
        "the FFN of ": [row.layer for row in gone if row.unit == "ffn" and row.layer in kept],
    }
    return ", ".join(
        f"{part}layer{'s' if layers[1:] else ''} {' and '.join(map(str, layers))}"
        for part, layers in parts.items()
        if layers
    )


def describe_vocabulary(vocabulary: Mapping[str, Any]) -> str:
    """Describe the size of a trimmed vocabulary and what it does to the test text; empty without one."""
    if not vocabulary:
        return ""
    split, longer = (f"{100 * vocabulary[name]:.1f} %" for name in ("split", "longer"))
    return (
        f"{vocabulary['pruned']:,} of {vocabulary['dense']:,} tokens; {split} of the tokens in the test text are "
        f"split into several, which makes it {longer} longer"
    )


def view_experts(units: Sequence[UnitSize], experts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of experts per layer of a mixture, and how tokens are routed to them; empty without any."""
    if not experts:
        return {}
    first = units[0]
    return {
        "dense": first.items,
        "kept": first.kept,
        "summary": f"{first.kept} of {first.items} in every layer with experts",
        "routing": _describe_routing(experts),
    }


def _describe_routing(experts: Mapping[str, Any]) -> str:
    """Describe how evenly tokens are routed to the experts of a pruned mixture, and which got too few to be judged."""
    most = {
        when: max(max(row[when]) * len(row[when]) / sum(row[when]) for row in experts["routing"])
        for when in ("before", "after")
    }
    text = f"an expert gets up to {most['after']:.1f} times the mean number of tokens ({most['before']:.1f} before)"
    rare = [f"expert {expert} of layer {layer}" for layer, numbers in experts["rare"].items() for expert in numbers]
    if rare:
        more = f" and {len(rare) - NAMED} more" * (len(rare) > NAMED)
        text += (
            f"; {len(rare)} got fewer calibration tokens than they have features ({experts['features']}): "
            f"{', '.join(rare[:NAMED])}{more}"
        )
    return text


def _kept_layers(units: Sequence[UnitSize]) -> set[int]:
    lost = Counter(row.layer for row in units if not row.kept)
    return {row.layer for row in units if lost[row.layer] < 2}


def _layers_differ(units: Sequence[UnitSize]) -> bool:
    kept = _kept_layers(units)
    # Unpruned attention is the same for all kinds of groups.
    sizes = {(row.unit, row.retention < 1 and row.group, row.retention) for row in units if row.layer in kept}
    return len(sizes) > len({kind for kind, _, _ in sizes})

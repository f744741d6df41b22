"""Write the tables of README.md, docs and benchmarks/README.md from the records in `benchmarks/results/`.

    python benchmarks/tables.py [--check] [--picture docs/size-perplexity.png] [--frontier docs/tokens-perplexity.png]

A table is made of files of records, columns and rows: a row selects a record, and a column turns it into a cell. On a
page it is between `<!-- table: NAME -->` and `<!-- end -->`, without the rows that have no record. `--check` writes
nothing and fails if a page differs from the records. `--picture` draws size against perplexity, and `--frontier` the
tokens of a prune against perplexity; both need matplotlib.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from math import exp, expm1
from pathlib import Path
from statistics import mean, quantiles, stdev
from typing import Any, NamedTuple


HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")), HERE / "README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# Fields of a record and their values. `of` names the model whose losses count, by default "calibrated", and `than` has
# the fields by which the model to compare with differs.
Wanted = dict[str, Any]
Column = Callable[["Pool", Wanted], str]
# A label with the records of its cells, or with the cells themselves.
Row = tuple[str, list[Wanted] | list[str]]


class Table(NamedTuple):
    """A table: the head of its labels, the files of its records, its columns by their heads, and its rows."""

    label: str
    files: tuple[str, ...]
    columns: dict[str, Column]
    rows: list[Row]

    def cells(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the label and the cells of every row, without rows of which nothing was recorded.

        If a row selects several records, a cell has the figures of all.
        """
        pool = Pool(self.files)
        for label, row in self.rows:
            cells = row or [""] * len(self.columns)
            if isinstance(cells[0], dict):
                columns = ([column(pool, one) for one in row] for column in self.columns.values())
                cells = [", ".join(filter(None, dict.fromkeys(figures))) for figures in columns]
            if any(cells) or not row:
                yield label, cells

    def render(self) -> str:
        """Return the table in Markdown."""
        return markdown([self.label, *self.columns], ([label, *cells] for label, cells in self.cells())) + "\n"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, with the first column aligned to the left and the others to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:]])


class Pool:
    """Records of several files, the first file first."""

    def __init__(self, files: Sequence[str]):
        self.records = [record for file in files for record in read(file)]

    def find(self, wanted: Wanted, last: int = 0) -> dict:
        """Return the first record with these fields, and with test window `last` unless it is 0, or an empty one."""
        asked = {name: value for name, value in wanted.items() if name not in ("of", "than")}
        for record in self.records:
            same = all(record.get(name) == value for name, value in asked.items())
            if same and (last == 0 or last in windows_of(record, wanted)):
                return record
        return {}

    def prune(self, wanted: Wanted) -> dict:
        """Return the record that `find` returns, unless the row is that of a model before the prune or recovery."""
        return {} if wanted.get("of") in ("dense", "pruned") else self.find(wanted)

    def losses(self, wanted: Wanted, first: int, last: int, text: int = 0) -> list[float]:
        """Return the losses of test windows, counted from 1; none without a record of all of them."""
        losses = windows_of(self.find(wanted, last), wanted, text)
        numbers = range(first, last + 1)
        return [losses[number] for number in numbers] if losses.keys() >= {*numbers} else []


def windows_of(record: dict, wanted: Wanted, text: int = 0) -> dict[int, float]:
    """Return the losses of all test windows of one text by their number, counted from 1."""
    texts = record.get("losses", {}).get(wanted.get("of", "calibrated"), [])
    return dict(zip(record.get("numbers", count(1)), texts[text])) if text < len(texts) else {}


def read(file: str) -> list[dict]:
    """Return the records of one file, with their options as fields.

    Their `losses` are lists over texts and windows, by model. Of `divergence.py` they include its other figures.
    """
    records = json.loads((HERE / "results" / f"{file}.json").read_text())
    for record in records:
        if "numbers" in record:
            figures = {"calibrated": "losses", "divergence": "divergence", "agreement": "agreement"}
            record["losses"] = {name: [record[key]] for name, key in figures.items() if key in record}
    return [record.get("options", {}) | record | {"file": file} for record in records]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(mean(values)), float(stdev(values)) / len(values) ** 0.5


def difference(pairs: list[Sequence[float]]) -> str:
    """Format a mean difference of losses in percent of perplexity, with its standard error over windows.

    A difference of `d` nats with standard error `s` is one of `exp(d) - 1` in perplexity, with standard error
    `exp(d) * s` (the delta method).

    Args:
        pairs: Difference of the losses of every window, in nats, for every seed.
    """
    if not pairs or len(pairs[0]) < 2:
        return ""
    nats, error = mean_and_error([mean(window) for window in zip(*pairs)])
    return f"{100 * expm1(nats):+.2f} ± {100 * exp(nats) * error:.2f} %"


def column(cell: Callable[..., str]) -> Callable[..., Column]:
    """Turn a function of a pool, a row and options into a function of the options that returns a column."""
    return lambda *options, **named: lambda pool, row: cell(pool, row, *options, **named)


@column
def at(pool: Pool, row: Wanted, other: Column, **more: Any) -> str:
    """Cell of another column, for a row that selects by more fields."""
    return other(pool, row | more)


@column
def perplexity(pool: Pool, row: Wanted, first: int, last: int, text: int = 0) -> str:
    """Perplexity on test windows, counted from 1. The oldest records only have it for all their windows."""
    if losses := pool.losses(row, first, last, text):
        return f"{exp(mean(losses)):.2f}"
    record = pool.find(row)
    whole = text == 0 and (first, last) == (1, record.get("test", {}).get("windows"))
    return f"{record['perplexities'][row.get('of', 'calibrated')]:.2f}" if whole else ""


@column
def against(pool: Pool, row: Wanted, first: int, last: int, text: int = 0, **than: Any) -> str:
    """Difference from the model that differs by `than`; bold if lower by three standard errors or more."""
    other = row | row.get("than", {}) | than
    ours, theirs = (pool.losses(wanted, first, last, text) for wanted in (row, other))
    if not ours or not theirs or ours == theirs:
        return ""
    pair = [one - other for one, other in zip(ours, theirs)]
    nats, error = mean_and_error(pair)
    return f"**{difference([pair])}**" if nats <= -3 * error else difference([pair])


@column
def average(pool: Pool, row: Wanted, first: int, last: int, figure: str, form: str, times: float = 1) -> str:
    """Mean of a figure of `divergence.py` over test windows, counted from 1."""
    found = pool.losses(row | {"of": figure}, first, last)
    return form.format(times * mean(found)) if found else ""


@column
def way_to_dense(pool: Pool, row: Wanted, text: int, start: str = "pruned", end: str = "recovered") -> str:
    """Share of the loss between pruned and dense model that a training gained, with its standard error."""
    dense, pruned, recovered = (pool.losses(row | {"of": model}, 1, 10, text) for model in ("dense", start, end))
    if row.get("of", "calibrated") != end or not recovered:
        return ""
    whole = mean(pruned) - mean(dense)
    share, error = mean_and_error([(before - after) / whole for before, after in zip(pruned, recovered)])
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


@column
def value(pool: Pool, row: Wanted, *path: str | int, form: str = "{:.2f}", times: float = 1) -> str:
    """Value of a field, or all values if it is a list."""
    found = pool.prune(row)
    for key in path:
        if not found or (isinstance(found, dict) and key not in found):
            return ""
        found = found[key]
    return form.format(*(times * one for one in (found if isinstance(found, list) else [found])))


def prune_tokens(record: dict) -> int:
    """Tokens of a prune, without the evaluation on test windows, in forward passes of the model."""
    return sum(count for stage, count in record.get("tokens", {}).items() if stage != "evaluation")


@column
def tokens(pool: Pool, row: Wanted) -> str:
    """Tokens of the whole prune, in forward passes of the model."""
    total = prune_tokens(pool.prune(row))
    return f"{total / 1e6:.2f}M" if total else ""


@column
def tokens_of_text(pool: Pool, row: Wanted) -> str:
    """Tokens of the calibration windows."""
    windows = pool.prune(row).get("search", {}).get("calibrated_on", {})
    return f"{windows['windows'] * windows['window_length']:,}" if windows else ""


@column
def held_out(pool: Pool, row: Wanted, figure: str, form: str) -> str:
    """Perplexity or divergence on held-out windows, after the stage whose weights were kept."""
    record = pool.prune(row).get("held_out", {})
    return "".join(
        form.format(stage[figure]) for stage in record.get("stages", []) if stage["stage"] == record["kept"]
    )


def times_as_fast(model: str) -> Column:
    """Speed relative to the dense model in the same rounds: median and quartiles."""

    def cell(pool: Pool, row: Wanted) -> str:
        dense, pruned = (pool.find(row | {"model": name}).get("seconds", []) for name in ("dense", model))
        if not pruned:
            return ""
        ratios = [one / other for one, other in zip(dense, pruned)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return f"{middle:.2f} ({low:.2f}-{high:.2f})"

    return cell


def trained_or_not(rows: dict[str, list[Wanted]], trained: str = "layers") -> list[Row]:
    """Return rows of the dense model, of models after ridge regression, and of the same models trained."""
    groups: list[Row] = [("dense", [{"of": "dense"}])]
    for name in ("ridge", trained):
        calibration = {"calibration": name}
        groups.append((HEADS[name], []))
        groups += [(label, [one | calibration for one in models]) for label, models in rows.items()]
    return groups


def rows_of_presets() -> list[Row]:
    """Return rows of the dense model and of presets at 20 and 30 %: the prune, then its model on later windows."""
    rows: list[Row] = [("dense", [FFP | {"of": "dense"}, DENSE])]
    for percent, method in ((20, FFP), (30, NO_SEARCH)):
        asked = {"asked": percent / 100}
        layers = FFP | LAYERS | asked
        than = {"than": layers | {"model": None, "file": "smollm2-default-all-windows"}}
        for label, prune, file in (
            ("`--preset fast`", NO_SEARCH | MODEL | {"preset": "fast"}, "fast"),
            ("no search, layers not trained by themselves", WHOLE_MODEL, f"whole-model-{percent}"),
            ("**the default**", method | DEFAULT, "default"),
            *[("the same with `--method no-search`", NO_SEARCH | DEFAULT, "no-search")] * (method != NO_SEARCH),
            ("the same, on 128 windows", NO_SEARCH | MODEL | {"file": "smollm2-128-windows"}, "128-windows"),
            ("`--preset best`", method | MODEL | {"preset": "best"}, "best"),
        ):
            model = f"{prune['method']}-{percent}-seed0"
            later = {"model": model, "file": f"smollm2-divergence-{file}"} | than
            rows.append((f"{percent} %: {label}", [prune | asked, later]))
        rows.append((f"{percent} %: `--calibration layers`, two passes", [layers]))
    return rows


def against_method_and_ridge(first: int, last: int, method: str) -> dict[str, Column]:
    """Return columns of perplexity, and of its differences from another method and from ridge regression alone."""
    return {
        "perplexity": perplexity(first, last),
        f"against {method.replace('-', ' ')}": against(first, last, method=method),
        "against ridge": against(first, last, calibration="ridge"),
    }


def by_sparsity(columns: dict[str, Column], percents: tuple[int, ...] = (20, 30)) -> dict[str, Column]:
    """Return the columns for one sparsity and then for the next."""
    return {
        f"{percent} %{head}": at(column, asked=percent / 100)
        for percent in percents
        for head, column in columns.items()
    }


# By calibration.
HEADS = {
    "ridge": "**Closed form alone (ridge regression), nothing trained**",
    "layers": "**Layers and last norm trained on the calibration text (`--calibration layers`)**",
    "model": "**The whole model trained too (`--calibration model`)**",
}
SIZES = "20 / 30 % of the blocks = 15.8 / 23.7 % of the model"
RIDGE, LAYERS, MODEL = ({"calibration": calibration} for calibration in ("ridge", "layers", "model"))
UNIFORM, NO_SEARCH, FFP = ({"method": method, "seed": 0} for method in ("uniform", "no-search", "ffp"))
DEFAULT = MODEL | {"preset": "default", "distillation_passes": None, "model_rate": None}
LESS_TEXT = NO_SEARCH | {"num_samples": 32, "preset": "default"}
WHOLE_MODEL = NO_SEARCH | MODEL | {"num_samples": 100, "distillation_passes": 0}
DENSE = {"model": "SmolLM2-135M-Instruct.Q4_1.gguf"}
# Prunes have no `numbers` of windows. Records of `divergence.py` have, and measure in bfloat16.
PRUNES = {"numbers": None}
MIX_WITH_SELF = "./wikitext2:0.45,C4.jsonl:0.45,self:0.1"
RECOVERED = {"start": "ffp-30-seed0", "of": "recovered", "batch_tokens": 512, "lora": 0, "seed": 0}
SMOLLM2 = ("smollm2-default", "smollm2-uniform-distilled", "smollm2-uniform", "smollm2-less-text")
ALL_WINDOWS = (*SMOLLM2, "smollm2-default-all-windows")
# Records of today's presets, and of the default with other options.
FRONTIER = tuple(
    path.stem
    for name in ("default-model-*", "fast", "best*", "frontier-*")
    for path in sorted((HERE / "results").glob(f"smollm2-{name}.json"))
)
DIVERGENCE = tuple(path.stem for path in sorted((HERE / "results").glob("smollm2-divergence-*.json")))
# Policies that `--policies` and `--methods` of `compare.py` have measured with the same calibration.
POLICIES = {"uniform": "uniform", "FLAP's": "flap", "no search": "no-search", "`ffp`'s search": "ffp"}
ONE_STEP, TWO_STEPS = ({"pruned_from": start} for start in (None, "no-search-30-seed0"))

# Perplexity at 20 and 30 % on the first 10 windows, and tokens of text. These measurements have no record.
OTHERS = {
    "FLAP (AL-AM, WIFV, biases; a unit is a KV group)": ("30.44", "48.76", "65,536"),
    "OptiPFair 0.4.2, FFN alone, data-driven": ("33.68", "51.81", "8,192"),
    "LLM-Pruner (Taylor, `param_first`), FFN alone": ("34.81", "58.61", "640"),
    "LLM-Pruner, FFN and one KV group of three in 25 layers": ("", "102.71", "640"),
    "Wanda-sp, uniform": ("34.88", "57.64", "16,384"),
    "ShortGPT (6 and 9 of 30 layers removed)": ("62.88", "142.56", "65,536"),
    "SVD-LLM, whitening alone": ("69.50", "107.23", "65,536"),
    "SliceGPT (19.45 and 29.79 %)": ("80.32", "115.27", "8,192"),
}

TABLES = {
    "methods": Table(
        SIZES,
        (*SMOLLM2, "smollm2", *FRONTIER),
        by_sparsity({"": perplexity(1, 10)}) | {"tokens of text": at(tokens_of_text(), asked=0.2)},
        [
            ("dense", [{"of": "dense"}]),
            ("**Nothing trained**", []),
            ("`--method ffp --calibration ridge`", [FFP | RIDGE]),
            ("`--method no-search --calibration ridge`", [NO_SEARCH | RIDGE]),
            ("the same, calibrated on 32 windows", [LESS_TEXT | RIDGE]),
            ("`--method uniform --calibration ridge`", [UNIFORM | RIDGE]),
            ("`--preset paper`, 64 of its 1000 evaluations", [{"method": "paper"}]),
            *((name, list(figures)) for name, figures in OTHERS.items()),
            (HEADS["layers"], []),
            ("`--method ffp`", [FFP | LAYERS]),
            ("the same, seeds 1, 2", [FFP | LAYERS | {"seed": seed} for seed in (1, 2)]),
            ("`--method no-search`", [NO_SEARCH | LAYERS]),
            ("`--method uniform`", [UNIFORM | LAYERS]),
            (HEADS["model"], []),
            (
                "**the default**: `--method ffp` at 20 %, `no-search` at 30 %",
                [ask | DEFAULT for ask in (FFP, NO_SEARCH)],
            ),
        ],
    ),
    "presets": Table(
        SIZES,
        (*FRONTIER, "smollm2-no-search-20", "smollm2-128-windows", *ALL_WINDOWS, *DIVERGENCE),
        {
            "1-10": at(perplexity(1, 10), **PRUNES),
            "82-148": perplexity(82, 148),
            "against `layers`": against(82, 148),
            "divergence": average(82, 148, "divergence", "{:.4f}"),
            "same token": average(82, 148, "agreement", "{:.1f} %", times=100),
            "held out": held_out("perplexity", "{:.2f}"),
            "tokens of the prune": tokens(),
        },
        rows_of_presets(),
    ),
    "policies": Table(
        SIZES,
        [f"smollm2-{name}" for name in ("policies", "fast", "divergence-policies", "divergence-fast", "policies-c4")],
        {
            f"{head}{label}": at(column, **fields)
            for head, first, last, fields in (
                ("ridge, 1-10", 1, 10, RIDGE),
                ("trained, 1-10", 1, 10, MODEL),
                ("trained, 82-148", 82, 148, {}),
                ("trained, C4", 1, 10, {"dataset": "C4.jsonl"}),
            )
            for label, column in (("", perplexity(first, last)), (": against no search", against(first, last)))
        },
        [
            ("dense", [FFP | {"of": "dense"}, DENSE]),
            *(
                (
                    f"{percent} %: {label}",
                    [
                        {"method": method, "asked": percent / 100, "than": {"method": "no-search"}},
                        {"model": f"{method}-{percent}-seed0", "than": {"model": f"no-search-{percent}-seed0"}},
                    ],
                )
                for percent in (20, 30)
                for label, method in POLICIES.items()
            ),
        ],
    ),
    "experts": Table(
        "removed, chosen by, calibration",
        ("smollm2-experts",),
        {
            "WikiText-2": perplexity(1, 10),
            "of the loss regained": way_to_dense(0, "searched", "calibrated"),
            "C4": perplexity(1, 10, text=1),
            "C4: of the loss regained": way_to_dense(1, "searched", "calibrated"),
        },
        [
            ("none", [{"of": "dense"}]),
            *(
                (f"{removed} of 8, `{name}`, none", [{"method": name, "asked": removed / 8, "of": "searched"}])
                for removed in (2, 4)
                for name in ("random", "frequency", "reap", "loss")
            ),
            *(
                (
                    f"4 of 8, `{name}`, `{calibration}`",
                    [{"method": name, "calibration": calibration, "seed": seed} for seed in (0, 1, 2)],
                )
                for calibration in ("layers", "model")
                for name in ("reap", "loss")
            ),
        ],
    ),
    "half": Table(
        "50 % of the blocks = 39.5 % of the model",
        ("smollm2-half",),
        {
            "windows 1-10": perplexity(1, 10),
            "against one step": against(1, 10),
            "held out": held_out("perplexity", "{:.2f}"),
            "divergence, held out": held_out("kl", "{:.4f}"),
        },
        [
            ("dense", [{"of": "dense"}]),
            ("one step, ridge regression", [ONE_STEP | RIDGE]),
            ("one step, then trained", [ONE_STEP | MODEL]),
            ("two steps, ridge regression in the second", [TWO_STEPS | RIDGE]),
            ("two steps, then trained", [TWO_STEPS | MODEL | {"than": ONE_STEP}]),
        ],
    ),
    "parts": Table(
        SIZES,
        ALL_WINDOWS,
        by_sparsity({f": {first}-{last}": against(first, last) for first, last in ((11, 60), (82, 148))}),
        [
            (f"{label}{trained}", [one | calibration | {"than": than}])
            for label, one, than in (
                ("curves: no search against uniform", NO_SEARCH, UNIFORM),
                ("search: `ffp` against no search", FFP, NO_SEARCH),
                ("text: no search, 114 windows against 32", NO_SEARCH, LESS_TEXT),
            )
            for trained, calibration in ((", not trained", RIDGE), (", trained", LAYERS))
        ]
        + [
            (f"training: {label}", [one | LAYERS | {"than": RIDGE}])
            for label, one in (("uniform", UNIFORM), ("no search", NO_SEARCH), ("`ffp`", FFP))
        ],
    ),
    "zero-shot": Table(
        SIZES,
        [f"smollm2-zero-shot-{name}" for name in ("distilled", "model-20", "model-30", "fast-20")],
        {"BoolQ": value("tasks", 0, "metrics", "acc", form="{:.1f}", times=100)}
        | {
            head: value(kind, "mean", form="{:.2f} ± {:.2f}", times=100)
            for head, kind in (("mean of seven tasks", "acc_norm"), ("balanced mean", "balanced"))
        },
        [
            ("dense", [{"model": "dense"}]),
            ("20 %, `--calibration layers`", [{"model": "ffp-20-seed0", "file": "smollm2-zero-shot-distilled"}]),
            ("20 %, the default", [{"model": "ffp-20-seed0", "file": "smollm2-zero-shot-model-20"}]),
            ("20 %, `ffp`, trained as in `fast`", [{"model": "ffp-20-seed0", "file": "smollm2-zero-shot-fast-20"}]),
            ("20 %, uniform, trained as in `fast`", [{"model": "uniform-20-seed0"}]),
            ("30 %, `--calibration layers`", [{"model": "ffp-30-seed0"}]),
            ("30 %, the default", [{"model": "no-search-30-seed0"}]),
        ],
    ),
    "texts": Table(
        "20 % of the blocks = 15.8 % of the model",
        ("smollm2-mix", "smollm2-mix-self", "smollm2-default"),
        {
            "WikiText-2": perplexity(1, 20),
            "against dense": against(1, 20, of="dense"),
            "C4": perplexity(1, 20, text=1),
            "C4: against dense": against(1, 20, text=1, of="dense"),
            "tokens of the prune": tokens(),
        },
        [
            ("dense", [{"of": "dense"}]),
            ("half and half (trained)", [{"dataset": "wikitext2:0.5,train.jsonl:0.5"}]),
            ("WikiText-2 alone (trained)", [{"asked": 0.2} | FFP | LAYERS]),
            ("C4 alone (trained)", [{"dataset": "train.jsonl"}]),
            ("the default, on 235 windows, a tenth of them `self`", [MODEL | {"dataset": MIX_WITH_SELF}]),
        ],
    ),
    "agents": Table(
        "20 % of the blocks = 15.8 % of the model",
        ("smollm2-agents", "smollm2-agents-ppo"),
        {
            "tokens of the search": value("tokens", "search", form="{:,}"),
            **{f"seed {seed}": at(against(1, 160, method="no-search"), seed=seed) for seed in (0, 1, 2)},
        },
        [
            ("`--agent gradient`", [{"method": "ffp", "file": "smollm2-agents"}]),
            ("`--agent ppo`", [{"method": "ffp", "file": "smollm2-agents-ppo"}]),
            ("`--method evolutionary`", [{"method": "evolutionary"}]),
            ("`--method random`", [{"method": "random"}]),
        ],
    ),
    "recovery": Table(
        "30 % of the blocks = 23.7 % of the model",
        ("smollm2-recovery",),
        {
            "tokens of text": value("tokens", form="{:,}"),
            "WikiText-2": perplexity(1, 10),
            "of the way to dense": way_to_dense(0),
            "C4": perplexity(1, 10, text=1),
            "C4: of the way": way_to_dense(1),
        },
        [
            ("dense", [{"of": "dense"}]),
            ("the start: pruned, layers trained", [{"of": "pruned", "start": "ffp-30-seed0"}]),
            ("recovered, `--lora 32`", [RECOVERED | {"lora": 32}]),
            ("recovered", [RECOVERED | {"asked": "50k"}]),
            ("recovered, seeds 0, 1, 2", [RECOVERED | {"asked": "100k", "seed": seed} for seed in (0, 1, 2)]),
            ("recovered", [RECOVERED | {"asked": "200k"}]),
            ("recovered", [RECOVERED | {"asked": "400k"}]),
        ],
    ),
    "homogeneous": Table(
        "20.31 % of the blocks = 16.0 % of the model",
        ("smollm2-homogeneous", *SMOLLM2),
        {
            "windows 1-10": perplexity(1, 10),
            "11-60": perplexity(11, 60),
            "against no search": against(11, 60, method="no-search"),
            "against `ffp`": against(11, 60, method="ffp"),
        },
        [
            (label, [{"asked": 0.2, "method": "homogeneous", "seed": 0} | calibration])
            for label, calibration in (("`--calibration ridge` (not trained)", RIDGE), ("trained", LAYERS))
        ],
    ),
    "paper": Table(
        SIZES,
        ("smollm2-learning-curve", "smollm2-learning-curve-retention-0.5"),
        {
            "smallest share": value("min_retention", form="{}"),
            "PPO, policy returned": value("ppo", "held_out", form="{:.3f}"),
            "mean action, first": value("mean_action", 0, 1, form="{:.3f}"),
            "mean action, last": value("mean_action", -1, 1, form="{:.3f}"),
            "random search": value("random", "held_out", form="{:.3f}"),
            "`uniform`": value("uniform", form="{:.3f}"),
        },
        [
            (label, [{"sparsity": sparsity, "min_retention": least}])
            for least in (0.2, 0.5)
            for label, sparsity in (("20 %", 0.2), ("30 %, from the agent of 20 %", 0.3))
        ],
    ),
    "gemma": Table(
        "20 / 30 % of the blocks = 7.5 / 11.2 % of the model",
        ("gemma3-270m",),
        by_sparsity(
            {
                "": perplexity(5, 14),
                ", against uniform": against(5, 14, method="uniform"),
                ", against no search": against(5, 14, method="no-search"),
            }
        ),
        trained_or_not(
            {"`--method uniform`": [UNIFORM], "`--method no-search`": [NO_SEARCH], "`--method ffp`": [FFP]},
        ),
    ),
    "qwen": Table(
        "20 % of the blocks = 11.4 % of the model",
        ("qwen2.5-coder-0.5b",),
        against_method_and_ridge(5, 14, "no-search"),
        trained_or_not({"`--method no-search`": [NO_SEARCH], "`--method ffp`": [FFP]}),
    ),
    "python": Table(
        "20 % of the blocks = 11.4 % of the model",
        ("qwen2.5-coder-0.5b-python",),
        against_method_and_ridge(1, 40, "uniform"),
        trained_or_not({"`--method uniform`": [UNIFORM], "`--method ffp`": [FFP]}, "model"),
    ),
    "depth": Table(
        "20 / 40 % of the blocks = 11.4 / 22.7 % of the model",
        ("qwen2.5-coder-0.5b-depth",),
        by_sparsity({"": perplexity(1, 32), ", against `none`": against(1, 32)}, (20, 40)),
        [
            ("dense", [{"of": "dense"}]),
            *(
                (f"`--depth {depth}`, not trained", [RIDGE | {"depth": depth, "than": {"depth": "none"}}])
                for depth in ("none", "layers", "sublayers")
            ),
            # Policies of the rows above, by their names.
            *(
                (f"`--depth {depth}`, trained", [MODEL | {"method": depth, "than": {"method": "none"}}])
                for depth in ("none", "sublayers")
            ),
        ],
    ),
    "serving": Table(
        "times as fast",
        ("smollm2-serving",),
        {
            head: times_as_fast(model)
            for head, model in (("20 %", "20"), ("30 %", "30"), ("one size, 20 %", "one-size"))
        },
        [
            (f"{runtime.replace('vllm', 'vLLM')}, {label}", [{"runtime": runtime, "workload": workload}])
            for runtime in ("transformers", "vllm", "llama.cpp")
            for label, workload in (("prompt", "512+1"), ("1 answer", "16+32"), ("8 answers", "16+32x8"))
        ],
    ),
    "starts": Table(
        "30 % of the blocks = 23.7 % of the model",
        ("smollm2-recovery",),
        {
            f"{text}, {of}": at(perplexity(1, 10, text=number), of=of)
            for number, text in enumerate(("WikiText-2", "C4"))
            for of in ("pruned", "recovered")
        },
        [
            (label, [RECOVERED | {"asked": "50k", "start": start}])
            for label, start in (
                ("`--calibration layers`, 0.71M", "ffp-30-seed0"),
                ("`--calibration ridge`: not trained, 0.28M", "ffp-30-seed0-ridge"),
                ("`--preset paper`, 64 evaluations: not trained, 0.42M", "paper-30-seed0"),
            )
        ],
    ),
}


# Rows of the table of methods in the picture: label, color, marker, and whether weights are trained.
DRAWN = {
    "**the default**: `--method ffp` at 20 %, `no-search` at 30 %": ("optimum-ffp", "#1f5fa8", "o", True),
    "`--method uniform`": ("uniform, layers trained", "#8a4fb0", "s", True),
    "`--method ffp --calibration ridge`": ("optimum-ffp, nothing trained", "#1f5fa8", "o", False),
    "`--method uniform --calibration ridge`": ("uniform, nothing trained", "#8a4fb0", "s", False),
    "FLAP (AL-AM, WIFV, biases; a unit is a KV group)": ("FLAP", "#505050", "^", False),
    "LLM-Pruner (Taylor, `param_first`), FFN alone": ("LLM-Pruner", "#909090", "v", False),
}


def draw(path: Path) -> None:
    """Draw the parameters of final models against their perplexity."""
    from matplotlib.figure import Figure

    rows = TABLES["methods"].cells()
    drawn = {"dense", *DRAWN}
    perplexities = {label: [float(cell) for cell in cells[:2] if cell] for label, cells in rows if label in drawn}
    sizes = {20: 113.3, 30: 102.7}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    note = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for label, (name, color, marker, trained) in DRAWN.items():
        (at_20, *at_30), fill = perplexities[label], color if trained else "white"
        axes.plot([*sizes.values()][: 1 + len(at_30)], [at_20, *at_30], marker, ls="-", color=color, mfc=fill, ms=7)
        if at_30:
            axes.annotate(f"{at_20:.2f}", (sizes[20], at_20), (9, 0), color=color, **note)
            axes.annotate(f"{name} {at_30[0]:.2f}", (sizes[30], at_30[0]), (-9, 0), color=color, ha="right", **note)
        else:
            # Beside the figure of another model.
            axes.annotate(f"{at_20:.2f} {name}", (sizes[20], at_20), (44, 0), color=color, **note)
    (dense, _) = perplexities["dense"]
    axes.axhline(dense, color="black", lw=1)
    axes.annotate(f"dense, 134.5M: {dense:.2f}", (92, dense), (6, 8), **note)
    for percent, size in sizes.items():
        axes.text(size, 66, f"{percent} % of the blocks", ha="center", va="top", fontsize=9)
    axes.set(
        yscale="log", xlim=(92, 125), ylim=(18.5, 68), yticks=(ticks := (20, 25, 30, 40, 50, 60)), yticklabels=ticks
    )
    axes.set(xlabel="parameters of the whole model, millions", ylabel="perplexity, WikiText-2")
    axes.set(title="SmolLM2-135M-Instruct; filled: weights trained on the calibration text")
    axes.minorticks_off()
    figure.savefig(path, dpi=130)


# Markers and labels in the picture of tokens, by what was trained, and colors by method.
STAGES = {
    "ridge": ("o", "nothing trained"),
    "layers": ("s", "layers"),
    "model": ("^", "whole model"),
    "layers, model": ("D", "layers, then whole model"),
}
COLORS = {
    "ffp": ("#1f5fa8", "with a search"),
    "no-search": ("#d07b1e", "no search"),
    "uniform": ("#8a4fb0", "uniform"),
}


def trained(record: dict) -> str:
    """Return what a prune trained, a key of `STAGES`."""
    calibration = record["calibration"]
    return "layers, model" if calibration == "model" and record["distillation_passes"] != 0 else calibration


def draw_frontier(path: Path) -> None:
    """Draw the tokens of prunes against the perplexity of their results, and the lowest with so many tokens."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    pool = Pool((*FRONTIER, *SMOLLM2))
    (_, (unpruned, _)), *rows = rows_of_presets()
    names = {id(pool.find(prune)): prune.get("preset") for _, (prune, *_) in rows}
    dense = exp(mean(pool.losses(unpruned, 1, 10)))
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, percent in zip(figure.subplots(1, 2), (20, 30)):
        points = []
        for record in pool.records:
            if (record["asked"], record["seed"]) == (percent / 100, 0) and record["method"] in COLORS:
                spent = prune_tokens(record) / 1e6
                points.append((spent, exp(mean(record["losses"]["calibrated"][0][:10]))))
                axes.plot(*points[-1], STAGES[trained(record)][0], color=COLORS[record["method"]][0], ms=7)
                if name := names.get(id(record)):
                    # The default is close to the left of `best`.
                    side, offset = ("left", 6) if name == "best" else ("right", -6)
                    note = {"textcoords": "offset points", "ha": side, "va": "top", "fontsize": 9}
                    axes.annotate(f"{name} {points[-1][1]:.2f}", points[-1], (offset, -4), **note)
        lowest = [(x, min(value for spent, value in points if spent <= x)) for x, _ in sorted(points)]
        axes.plot(*zip(*lowest), drawstyle="steps-post", color="#909090", lw=1, zorder=1)
        axes.axhline(dense, color="black", lw=1)
        axes.text(9.5, dense, f"dense {dense:.2f}", ha="right", va="bottom", fontsize=9)
        axes.set(xscale="log", xlim=(0.2, 10), xticks=(ticks := (0.25, 0.5, 1, 2, 4, 8)), xticklabels=ticks)
        axes.minorticks_off()
        axes.grid(color="#e8e8e8")
        axes.set_axisbelow(True)
        axes.set(title=f"{percent} % of the blocks", xlabel="tokens of the prune, millions", ylabel="perplexity")
    handles = [Line2D([], [], color="black", marker=marker, ls="", label=label) for marker, label in STAGES.values()]
    handles += [Line2D([], [], color=color, marker="o", ls="", label=label) for color, label in COLORS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.suptitle("SmolLM2-135M-Instruct, WikiText-2, test windows 1-10")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Fail if a page differs, and write nothing.")
    parser.add_argument("--picture", type=Path, help="Draw size against perplexity to this file.")
    parser.add_argument("--frontier", type=Path, help="Draw the tokens of a prune against perplexity to this file.")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text()
        written = MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]].render()}{found[4]}", text)
        pairs = zip(MARKED.findall(text), MARKED.findall(written))
        differ = [name for (_, name, before, _), (_, _, after, _) in pairs if before != after]
        if args.check and differ:
            sys.exit(f"{page}: {', '.join(differ)} differ from the records; run python benchmarks/tables.py")
        if differ:
            page.write_text(written)
    if args.picture:
        draw(args.picture)
    if args.frontier:
        draw_frontier(args.frontier)


if __name__ == "__main__":
    main()

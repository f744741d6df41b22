"""Write the tables of README.md, docs and benchmarks/README.md from the records in `benchmarks/results/`.

    python benchmarks/tables.py [--check]

On a page, a table is between `<!-- table: NAME -->` and `<!-- end -->`. `--check` writes nothing and fails if a page
differs from the records. `tables.json` defines every table:

- `label`: The head of the first column.
- `files`: The files of its records, first match first; `*` is a wildcard.
- `columns`: By the head of a column, the function of this file that makes its cells, and the arguments; `with` adds
  fields to the selection of the row.
- `rows`: A label and selections of records, whose figures share a cell. `cells` are figures without a record, or
  cells of their own. A label alone is a heading. A row whose records don't exist is left out.

A selection is an object with fields of a record and their values, a name in `records`, or a list of both to merge.
`of` names the model whose losses count, by default "calibrated", `than` has the fields by which the model to compare
with differs, and differences are averaged over `seeds`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from math import exp, expm1
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from optimum_ffp.utils.standard_error import block_error


HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")), HERE / "README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DEFINITIONS = json.loads((HERE / "tables.json").read_text(encoding="utf-8"))
# Fields of a record and their values.
Wanted = dict[str, Any]


class Table:
    """A table of `tables.json`, with its records."""

    def __init__(self, name: str):
        definition = DEFINITIONS["tables"][name]
        self.label: str = definition["label"]
        self.columns: dict[str, Any] = definition["columns"]
        self.rows: list[list[Any]] = definition["rows"]
        self.pool = Pool(definition["files"])

    def cells(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the label and the cells of every row, without rows of which nothing was recorded."""
        for label, *row in self.rows:
            if not row:
                yield label, [""] * len(self.columns)
            elif "cells" in row[0]:
                yield label, [cell if isinstance(cell, str) else self.cell(cell, {}) for cell in row[0]["cells"]]
            else:
                records = [fields_of(selection) for selection in row]
                columns = ([self.cell(column, record) for record in records] for column in self.columns.values())
                cells = [", ".join(filter(None, dict.fromkeys(figures))) for figures in columns]
                if any(cells):
                    yield label, cells

    def cell(self, column: Any, row: Wanted) -> str:
        """Return the cell of a column for a record."""
        if isinstance(column, dict):
            return self.cell(column["cell"], row | fields_of(column["with"]))
        name, *arguments = column
        return CELLS[name](self.pool, row, *arguments)

    def render(self) -> str:
        """Return the table in Markdown."""
        return markdown([self.label, *self.columns], ([label, *cells] for label, cells in self.cells())) + "\n"


def fields_of(selection: str | Wanted | list) -> Wanted:
    """Return the fields of a selection of `tables.json`."""
    if isinstance(selection, list):
        return {name: value for part in selection for name, value in fields_of(part).items()}
    if isinstance(selection, str):
        return fields_of(DEFINITIONS["records"][selection])
    return selection | ({"than": fields_of(selection["than"])} if "than" in selection else {})


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, with the first column aligned to the left and the others to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:]])


class Pool:
    """Records of several files, the first file first."""

    def __init__(self, names: Sequence[str]):
        files = [file.stem for name in names for file in sorted((HERE / "results").glob(f"{name}.json"))]
        self.records = [record for file in files for record in read(file)]

    def find(self, wanted: Wanted, last: int = 0) -> dict:
        """Return the first record with these fields, and with test window `last` unless it is 0, or an empty one."""
        asked = {name: value for name, value in wanted.items() if name not in ("of", "than", "seeds")}
        for record in self.records:
            same = all(record.get(name) == value for name, value in asked.items())
            if same and (last == 0 or last in windows_of(record, wanted)):
                return record
        return {}

    def prune(self, wanted: Wanted) -> dict:
        """Return the record that `find` returns, unless the row is that of a model before the prune or recovery."""
        return {} if wanted.get("of") in ("dense", "pruned") else self.find(wanted)

    def losses(self, wanted: Wanted, first: int, last: int, text: int = 0) -> list[float]:
        """Return the losses of test windows, counted from 1, or of all if `last` is 0; none if one isn't on record."""
        losses = windows_of(self.find(wanted, last), wanted, text)
        numbers = range(first, last + 1) if last else losses.keys()
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
        if {"numbers", "divergence"} & record.keys():
            figures = {"calibrated": "losses", "divergence": "divergence", "agreement": "agreement"}
            record["losses"] = {name: [record[key]] for name, key in figures.items() if key in record}
    return [record.get("options", {}) | record | {"file": file} for record in records]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two windows and its standard error."""
    return float(mean(values)), block_error(values) or 0.0


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


def perplexity(pool: Pool, row: Wanted, first: int, last: int, text: int = 0) -> str:
    """Perplexity on test windows, counted from 1. The oldest records only have it for all their windows."""
    if losses := pool.losses(row, first, last, text):
        return f"{exp(mean(losses)):.2f}"
    record = pool.find(row)
    whole = text == 0 and (first, last) == (1, record.get("test", {}).get("windows"))
    return f"{record['perplexities'][row.get('of', 'calibrated')]:.2f}" if whole else ""


def paired(pool: Pool, row: Wanted, first: int, last: int, text: int = 0) -> list[float]:
    """Differences of windows from the model that differs by `than`; none if one of the two isn't on record."""
    ours, theirs = (pool.losses(one, first, last, text) for one in (row, row | row.get("than", {})))
    return [one - other for one, other in zip(ours, theirs)] if ours != theirs else []


def in_bold(cell: str, values: Sequence[float]) -> str:
    """Emphasize a difference that is lower by three standard errors or more."""
    average, error = mean_and_error(values)
    return f"**{cell}**" if average <= -3 * error else cell


def against(pool: Pool, row: Wanted, first: int, last: int, text: int = 0) -> str:
    """Difference from the model that differs by `than`, or its mean over `seeds`."""
    rows = [row | {"seed": seed} for seed in row.get("seeds", [])] or [row]
    pairs = [pair for pair in (paired(pool, one, first, last, text) for one in rows) if pair]
    return in_bold(difference(pairs), [mean(window) for window in zip(*pairs)]) if len(pairs) == len(rows) else ""


def change(pool: Pool, row: Wanted, first: int, last: int, text: int = 0) -> str:
    """Difference of the figure `of` from that of the model that differs by `than`, in percent of the latter."""
    pair = paired(pool, row, first, last, text)
    if not pair:
        return ""
    percent = [100 * one / mean(pool.losses(row | row["than"], first, last, text)) for one in pair]
    return in_bold("{:+.1f} ± {:.1f} %".format(*mean_and_error(percent)), percent)


def average(pool: Pool, row: Wanted, first: int, last: int, figure: str, form: str, times: float = 1) -> str:
    """Mean of a figure of `divergence.py` over test windows, counted from 1."""
    found = pool.losses(row | {"of": figure}, first, last)
    return form.format(times * mean(found)) if found else ""


def way_to_dense(pool: Pool, row: Wanted, text: int, start: str = "pruned", end: str = "recovered") -> str:
    """Share of the loss between pruned and dense model that a training gained, with its standard error."""
    dense, pruned, recovered = (pool.losses(row | {"of": model}, 1, 10, text) for model in ("dense", start, end))
    if row.get("of", "calibrated") != end or not recovered:
        return ""
    whole = mean(pruned) - mean(dense)
    share, error = mean_and_error([(before - after) / whole for before, after in zip(pruned, recovered)])
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


def value(pool: Pool, row: Wanted, path: list[str | int], form: str, times: float = 1) -> str:
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


def tokens(pool: Pool, row: Wanted) -> str:
    """Tokens of the whole prune, in forward passes of the model."""
    total = prune_tokens(pool.prune(row))
    return f"{total / 1e6:.2f}M" if total else ""


def tokens_of_text(pool: Pool, row: Wanted) -> str:
    """Tokens of the calibration windows."""
    windows = pool.prune(row).get("search", {}).get("calibrated_on", {})
    return f"{windows['windows'] * windows['window_length']:,}" if windows else ""


def held_out(pool: Pool, row: Wanted, figure: str, form: str) -> str:
    """Perplexity or divergence on held-out windows, after the stage whose weights were kept."""
    record = pool.prune(row).get("held_out", {})
    return "".join(
        form.format(stage[figure]) for stage in record.get("stages", []) if stage["stage"] == record["kept"]
    )


def times_as_fast(pool: Pool, row: Wanted, model: str = "") -> str:
    """Speed of the row's model, or another, relative to the dense one in the same rounds: median and quartiles."""
    names = ("dense", model or row["model"])
    dense, pruned = (pool.find(row | {"model": name}).get("seconds", []) for name in names)
    if not pruned:
        return ""
    ratios = [one / other for one, other in zip(dense, pruned)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


FUNCTIONS = (
    against,
    average,
    change,
    held_out,
    perplexity,
    times_as_fast,
    tokens,
    tokens_of_text,
    value,
    way_to_dense,
)
CELLS: dict[str, Callable[..., str]] = {function.__name__: function for function in FUNCTIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Fail if a page differs, and write nothing.")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text()
        written = MARKED.sub(lambda found: f"{found[1]}{Table(found[2]).render()}{found[4]}", text)
        pairs = zip(MARKED.findall(text), MARKED.findall(written))
        differ = [name for (_, name, before, _), (_, _, after, _) in pairs if before != after]
        if args.check and differ:
            sys.exit(f"{page}: {', '.join(differ)} differ from the records; run python benchmarks/tables.py")
        if differ:
            page.write_text(written)


if __name__ == "__main__":
    main()

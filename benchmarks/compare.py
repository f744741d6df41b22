"""Compares methods, criteria, sparsities and seeds on one model and dataset, on the same windows.

    python benchmarks/compare.py MODEL DATASET [options]

Writes one JSON record per prune (perplexities, losses of every test window, held-out figures of every stage of a
calibration, sparsity, candidate evaluations, tokens, seconds and peak memory per stage) and prints a table:
perplexity on the first `--head` test windows, which the method was developed on, and on all after them; and there
the difference from the method or criterion `--against`, all else equal, in percent of perplexity, with its paired
standard error over windows (mean over seeds). Methods and criteria may be modules of other packages. Tokens are
counted in forward passes of the model, those of the prune without the evaluation on test windows. Methods other than
`paper` share the default preset's statistics, importance, curves and evaluator, so that only the search differs. All
are compared after ridge regression, as candidates of the search are; those in `--distilled` also with the calibration
of a prune, the default or that in `--options`, and the same policy. The file is updated after every prune. `--options`
sets other options of `FFPConfig` for the methods of the default preset. With `--work` an interrupted run resumes when
it is started again, also with more methods; the recorded seconds are those of the last process. `--policies` adds rows
for policies of files, such as those of `flap.py`, by the name of a method. They share measurements of their own, since
layers may lose other groups of attention, all of them the same.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
from tables import difference, markdown, prune_tokens

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.checkpoint.result import PruningResult, package_versions
from optimum_ffp.checkpoint.saving import save_checkpoint
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.data import describe_windows
from optimum_ffp.hub.naming import without_folders
from optimum_ffp.utils.json import write_json


# `paper` is a preset; all others are methods of the default preset.
METHODS = ("paper", "uniform", "no-search", "random", "evolutionary", "ffp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="*", default=METHODS, metavar="METHOD")
    parser.add_argument("--criteria", nargs="+", default=[None], metavar="CRITERION")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.2, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--eval-samples", type=int, help="Test windows. Default: those of a prune.")
    parser.add_argument("--head", type=int, default=10, help="Test windows that the method was developed on.")
    parser.add_argument("--against", help="Default: the first criterion if there are several, otherwise no-search.")
    parser.add_argument("--distilled", nargs="*", default=("no-search", "ffp"))
    parser.add_argument("--policies", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--save", type=Path, help="Folder to write all pruned models to.")
    parser.add_argument("--work", type=Path, help="Folder for finished work, to resume from.")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--eval-dataset", help="Dataset of the test windows. Default: DATASET.")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, default=Path("compare.json"))
    args = parser.parse_args()
    policies = [word.partition("=")[::2] for word in args.policies]
    against = args.against or (args.criteria[0] if args.criteria[1:] else "no-search")
    known = {*METHODS, *args.methods, *args.criteria, *(name for name, _ in policies)}
    if unknown := {against, *args.distilled} - known:
        parser.error(f"{', '.join(unknown)}: neither a method, a criterion nor the name of a policy")

    # By measurements that are shared: options, and rows with their sparsities and options.
    options, groups = read_options(args.options), {}
    rows = [(method, asked, {"method": method}) for asked in args.sparsities for method in args.methods]
    for criterion in args.criteria:
        chosen = {"criterion": criterion} if criterion else {}
        groups[criterion or "default"] = (options | chosen, [row for row in rows if row[0] != "paper"])
    papers = [("paper", asked, {"method": "ffp"}) for method, asked, _ in rows if method == "paper"]
    groups["paper"] = ({"preset": "paper", "search_steps": 64}, papers)
    groups["policies"] = (options, [(name, None, {"policy": file}) for name, file in policies])
    records = []
    for seed in args.seeds:
        for group, (options, rows) in groups.items():
            for record in run(args, group, options, rows, seed) if rows else ():
                records.append(record)
                write_json(args.output, records)
    print(table(records, args.head, against))


def run(args: argparse.Namespace, group: str, options: dict, rows: list[tuple[str, float | None, dict]], seed: int):
    """Yields the records of one seed and group; all rows share a pruner and its measurements."""
    data = {name: getattr(args, name) for name in ("dataset", "eval_dataset", "eval_samples", "seq_len")}
    # The default sparsity may be less than what a model that was pruned before has lost.
    _, sparsity, changes = rows[0]
    config = FFPConfig(**options, seed=seed, sparsity=sparsity, policy=changes.get("policy"), **data)
    work = args.work and args.work / f"{group}-seed{seed}"
    pruner = FFPPruner.from_pretrained(args.model, config, work)
    pruner.open_journal(resume=work is not None)
    for method, sparsity, changes in rows:
        is_trained = method in args.distilled and group != "paper"
        # Without a search, the policy depends on whether weights are trained.
        changes = changes if is_trained else changes | {"calibration": "ridge"}
        found = pruner.search(**changes | {"sparsity": sparsity})
        asked = sparsity or round(found.policy.sparsity, 2)
        calibrations = ["ridge", *([found.plan.calibration] if is_trained else [])]
        for calibration in calibrations:
            result = pruner.finish(found, calibration=calibration)
            yield {"method": method, "calibration": calibration, "asked": asked} | describe(result)
            if args.save:
                name = f"{method}-{f'{group}-' * (group in args.criteria)}{100 * asked:g}-seed{seed}"
                name += "" if calibration == calibrations[-1] else f"-{calibration}"
                # `pruner.save_pretrained` would remove the work folder.
                save_checkpoint(result, args.save / name, overwrite=True)


def read_options(words: list[str]) -> dict:
    """Parses options of `FFPConfig` from `NAME=VALUE`, with values in JSON or as plain text."""
    return {name: _value(text) for name, _, text in (word.partition("=") for word in words)}


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def describe(result: PruningResult) -> dict:
    """The record of one prune. Local paths are cut to their names, so that records don't depend on the machine."""
    record = {
        "base_model": result.base_model,
        "pruned_from": result.pruned_from,
        "dtype": result.dtype,
        "options": result.plan.to_dict(),
        "versions": package_versions(),
        "seed": result.plan.seed,
        "sparsity": result.policy.sparsity,
        "model_sparsity": result.model_sparsity,
        "perplexities": result.tests[0][1],
        "test": result.test.describe(),
        "losses": {
            name: [[round(loss, 6) for loss in text] for text in texts] for name, texts in result.losses.items()
        },
        "other_texts": [perplexities | windows.describe() for windows, perplexities in result.tests[1:]],
        "held_out": result.calibration,
        "search": result.search.to_record().to_dict(),
        "sizes": result.policy.sizes,
        "tokens": result.cost.tokens,
        "seconds": result.cost.seconds,
        "peak_gib": {name: value / 2**30 for name, value in result.cost.peak_bytes.items()},
    }
    return without_folders(record)


def table(records: list[dict], head: int, against: str) -> str:
    """Medians (and ranges) over seeds by method, criterion, calibration and sparsity, and paired differences."""
    groups, parts = defaultdict(dict), (slice(head), slice(head, None))
    for record in records:
        key = record["method"], record["options"]["criterion"], record["calibration"], record["asked"]
        groups[key][record["seed"]] = record
    criteria = [criterion for _, criterion, *_ in groups]
    columns = ("method", "criterion", "calibration", "sparsity", f"first {head}", "later", f"against {against}")
    columns += ("candidates", "tokens of the search", "of the prune")
    rows = []
    for (method, criterion, calibration, asked), group in groups.items():
        losses = [np.array(record["losses"]["calibrated"][0]) for record in group.values()]
        # The preset `paper` has a criterion of its own.
        other = (against, criteria[0] if method == "paper" else criterion)
        other = (method, against) if against in criteria else other
        reference = groups.get((*other, calibration, asked), {})
        pairs = [
            np.array(record["losses"]["calibrated"][0]) - reference[seed]["losses"]["calibrated"][0]
            for seed, record in group.items()
            if other != (method, criterion) and seed in reference
        ]
        first, spreads = next(iter(group.values())), [spread([one[part] for one in losses]) for part in parts]
        cells = [method, criterion, calibration, f"{asked:.0%}", *spreads, difference([pair[head:] for pair in pairs])]
        cells += [str(first["search"]["candidate_evaluations"]), f"{first['search']['tokens_evaluated']:,}"]
        rows.append([*cells, f"{prune_tokens(first):,}"])
    test, dense = records[0]["test"], np.array(records[0]["losses"]["dense"][0])
    note = f"Dense: {' and '.join(spread([dense[part]]) for part in parts)}. {describe_windows(test)}."
    return f"{markdown(columns, rows)}\n\n{note}"


def spread(losses: list[np.ndarray]) -> str:
    """Median and range of the perplexity over seeds; empty without windows."""
    if not losses[0].size:
        return ""
    values = sorted(float(np.exp(one.mean())) for one in losses)
    return f"{median(values):.2f}" + (f" ({values[0]:.2f}-{values[-1]:.2f})" if len(values) > 1 else "")


if __name__ == "__main__":
    with one_line_errors():
        main()

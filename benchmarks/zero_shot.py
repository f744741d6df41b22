"""The paper's Table 1: zero-shot accuracy on seven tasks, of dense and pruned models.

    python benchmarks/zero_shot.py MODEL ... [options]

Needs `optimum-ffp[eval]`. Accuracy is normalized by length if the task has that metric. Prints one row per model, in
percent, with the mean and the difference of the first model to it, each with its standard error (of paired samples
for the difference). Then the same with balanced accuracy for the tasks of `--balanced`, which have the same answers
for all questions: a model that always answers yes has 62 % on BoolQ, and 50 % balanced. The JSON has both kinds of
accuracy. `--tasks-path` takes lm-eval tasks with local data.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from math import hypot
from pathlib import Path

import numpy as np

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.evaluation import TaskSuite
from optimum_ffp.hub.naming import short_name
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.json import write_json
from optimum_ffp.utils.precision import dtype_name


TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
# Entries of a record that are lists over samples.
SAMPLES = ("per_sample", "answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Hub ids or folders.")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--tasks-path", help="Folder of .yaml tasks.")
    parser.add_argument("--limit", type=int, help="Samples per task. Default: all.")
    parser.add_argument(
        "--balanced",
        nargs="*",
        default=["boolq"],
        help="Tasks with the same answers for all questions, to report balanced accuracy of.",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto", help="Dtype to load the models in. Default: the checkpoint's.")
    parser.add_argument("--output", type=Path, default=Path("zero_shot.json"))
    args = parser.parse_args()

    suite = TaskSuite(args.tasks, args.tasks_path, num_fewshot=0)
    records, first = [], None
    columns = [*args.tasks, "mean", "first has more", "balanced mean", "first has more"]
    print(f"| model | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in args.models:
        model, tokenizer = load_any(name, LoadOptions(device=args.device, dtype=args.dtype))
        scores = suite.score(model, tokenizer, args.limit, args.batch_size)
        first = first or scores
        means = {kind: summarize(scores, first, kind) for kind in ("acc", "acc_norm")}
        means["balanced"] = summarize(scores, first, "acc_norm", args.balanced)
        tasks = [{key: value for key, value in score.items() if key not in SAMPLES} for score in scores]
        dtype = dtype_name(model.dtype)
        records.append({"model": short_name(name), "dtype": dtype, "limit": args.limit, **means, "tasks": tasks})
        write_json(args.output, records)
        print(row(records[-1]), flush=True)


def summarize(
    scores: list[dict], first: list[dict], kind: str, balanced: Iterable[str] = ()
) -> dict[str, tuple[float, float]]:
    """Mean over tasks, and the difference of the first model to it, each with its standard error.

    Args:
        scores: One record per task.
        first: The same for the first model.
        kind: `acc`, or `acc_norm` for accuracy normalized by length if a task has it.
        balanced: Tasks whose accuracy is balanced.
    """
    own, other = ([per_sample(score, kind, score["task"] in balanced) for score in one] for one in (scores, first))
    more = (theirs - ours for ours, theirs in zip(own, other))
    return {"mean": mean_over_tasks(own), "first_has_more": mean_over_tasks(more)}


def per_sample(score: dict, kind: str, balanced: bool) -> np.ndarray:
    """Score per sample. The mean of balanced scores is the mean of the accuracies per answer."""
    found = score["per_sample"]
    hits = np.array(found.get(kind, found["acc"]))
    if balanced:
        counts = Counter(score["answers"])
        hits *= [len(hits) / (len(counts) * counts[answer]) for answer in score["answers"]]
    return hits


def mean_over_tasks(tasks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean of the means of the tasks, and its standard error."""
    means, errors = zip(*((task.mean(), task.std(ddof=1) / len(task) ** 0.5) for task in tasks))
    return float(np.mean(means)), hypot(*errors) / len(errors)


def row(record: dict) -> str:
    """One row of the table."""
    metrics = [task["metrics"] for task in record["tasks"]]
    cells = [f"{100 * found.get('acc_norm', found['acc']):.1f}" for found in metrics]
    for kind in ("acc_norm", "balanced"):
        cells += ["{:.2f} ± {:.2f}".format(*(100 * figure for figure in record[kind]["mean"]))]
        cells += ["{:+.2f} ± {:.2f}".format(*(100 * figure for figure in record[kind]["first_has_more"]))]
    return f"| {record['model']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    with one_line_errors():
        main()

"""The paper's Table 1: zero-shot accuracy on seven tasks, of the dense model and of pruned ones.

    python benchmarks/zero_shot.py MODEL ... [--tasks boolq piqa ...] [--tasks-path FOLDER] [--limit 200]
        [--batch-size 8] [--device cpu] [--output zero_shot.json]

Needs `optimum-ffp[eval]`. Accuracy is normalised by length where the task gives that. Prints a row a model, in
percent, with the mean and its standard error; the JSON has both kinds of accuracy. Models are compared on the same
samples, so differences between them are less uncertain than each mean is. `--tasks-path` takes lm-eval tasks with
local data.
"""

import argparse
import json
from math import hypot
from pathlib import Path

from optimum_ffp.evaluation import TaskSuite
from optimum_ffp.loading import LoadOptions, load_any
from optimum_ffp.naming import short_name


TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Hub ids or folders.")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--tasks-path", help="Folder of .yaml tasks.")
    parser.add_argument("--limit", type=int, help="Samples of every task. Default: all.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, default=Path("zero_shot.json"))
    args = parser.parse_args()

    suite = TaskSuite(args.tasks, args.tasks_path, num_fewshot=0)
    records = []
    print(f"| model | {' | '.join(args.tasks)} | mean |\n|---|{'---:|' * (len(args.tasks) + 1)}")
    for name in args.models:
        model, tokenizer = load_any(name, LoadOptions(device=args.device))
        scores = suite.score(model, tokenizer, args.limit, args.batch_size)
        records.append({"model": short_name(name), "limit": args.limit, "tasks": scores} | summarise(scores))
        args.output.write_text(json.dumps(records, indent=2) + "\n")
        print(row(records[-1]), flush=True)


def summarise(scores: list[dict]) -> dict[str, dict[str, float]]:
    """Means over tasks of plain accuracy, and of that normalised by length where there is one."""
    result = {}
    for kind in ("acc", "acc_norm"):
        chosen = [kind if kind in score["metrics"] else "acc" for score in scores]
        values = [score["metrics"][metric] for score, metric in zip(scores, chosen)]
        errors = [score["stderr"][metric] for score, metric in zip(scores, chosen)]
        result[f"mean_{kind}"] = {"value": sum(values) / len(values), "stderr": hypot(*errors) / len(errors)}
    return result


def row(record: dict) -> str:
    """One row of the table."""
    figures = [score["metrics"].get("acc_norm", score["metrics"]["acc"]) for score in record["tasks"]]
    cells = [f"{100 * figure:.1f}" for figure in figures]
    mean = record["mean_acc_norm"]
    return f"| {record['model']} | {' | '.join(cells)} | {100 * mean['value']:.2f} ± {100 * mean['stderr']:.2f} |"


if __name__ == "__main__":
    main()

"""How far the predictions of pruned models are from those of the dense model, beside their perplexities.

    python benchmarks/divergence.py DENSE PRUNED [PRUNED ...] --dataset DATASET [--windows 8] [--dtype bfloat16]
        [--output divergence.json]

Perplexity compares a model with the text, which the dense model may predict badly itself: one that was trained on
code does so with articles, and a pruned model can come nearer to the text while it gets further from the dense model.
Prints what `optimum-cli ffp evaluate --baseline DENSE` measures on the first test windows: the divergence
`KL(dense ‖ pruned)` in nats per token, the share of tokens of which both find the same one most likely, and the loss
above the dense model's; and differences in percent of the first pruned model's figure, with their paired standard
errors over windows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tables import mean_and_error

from optimum_ffp import evaluate
from optimum_ffp.commands.errors import one_line_errors


COLUMNS = ("divergence", "agreement", "excess_loss")


def against(first: np.ndarray, figures: np.ndarray) -> str:
    """Mean difference in percent of the first model's mean, with its paired standard error over windows."""
    return "{:+.1f} ± {:.1f} %".format(*mean_and_error(100 * (figures - first) / first.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("divergence.json"))
    args = parser.parse_args()

    first, *others = args.pruned
    options = {"dataset": args.dataset, "eval_samples": args.windows, "dtype": args.dtype, "speed": False}
    measured = evaluate(first, [args.dense, *others], **options)
    losses = np.array(measured.pop("baseline")["perplexity"]["losses"])
    records, reference = [], None
    print("| | divergence | against the first | same token | excess loss | against the first |")
    print("|---|---:|---:|---:|---:|---:|")
    for source, record in zip(args.pruned, measured.values()):
        figures = record["perplexity"]
        columns = np.array([figures["divergences"], figures["agreements"], figures["losses"] - losses])
        reference = columns if reference is None else reference
        divergence, agreement, excess = columns.mean(1)
        versus = [against(reference[row], columns[row]) if records else "" for row in (0, 2)]
        cells = (f"{divergence:.4f}", versus[0], f"{100 * agreement:.1f} %", f"{excess:.4f}", versus[1])
        print(f"| {Path(source).name} | {' | '.join(cells)} |")
        records.append({"model": Path(source).name, **dict(zip(COLUMNS, columns.tolist()))})
    args.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()

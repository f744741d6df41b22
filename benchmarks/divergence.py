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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compare import difference, load_with_text
from transformers import PreTrainedModel

from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.data import Windows
from optimum_ffp.evaluation import Predictions, perplexity_record
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.progress import progress_bar


COLUMNS = ("divergence", "agreement", "excess_loss")


def measure(dense: PreTrainedModel, sources: Sequence[str], options: LoadOptions, windows: Windows) -> np.ndarray:
    """Figures of every model on every window, shape `[models, windows, figures]`."""
    predictions, rows, place = Predictions(dense, windows.tokens), [], (windows.tokens, windows.describe(), 1)
    with progress_bar((1 + len(sources)) * len(windows), "Divergence", "window") as bar:
        losses = perplexity_record(dense, *place, bar.update, keep=predictions)["losses"]
        for source in sources:
            found = perplexity_record(load_any(source, options)[0], *place, bar.update, baseline=predictions)
            rows.append([found["divergences"], found["agreements"], np.subtract(found["losses"], losses)])
    return np.array(rows).swapaxes(1, 2)


def against(first: np.ndarray, figures: np.ndarray) -> str:
    """Mean difference in percent of the first model's mean, with its paired standard error over windows."""
    return difference([(figures - first) / first.mean()], digits=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("divergence.json"))
    args = parser.parse_args()

    options = LoadOptions(dtype=args.dtype)
    dense, _, windows = load_with_text(args.dense, args.dataset, options, args.windows)
    figures = measure(dense, args.pruned, options, windows)
    records = []
    print("| | divergence | against the first | same token | excess loss | against the first |")
    print("|---|---:|---:|---:|---:|---:|")
    for source, own in zip(args.pruned, figures):
        name = Path(source).name
        divergence, agreement, excess = own.mean(0)
        others = [against(figures[0][:, column], own[:, column]) if records else "" for column in (0, 2)]
        cells = (f"{divergence:.4f}", others[0], f"{100 * agreement:.1f} %", f"{excess:.4f}", others[1])
        print(f"| {name} | {' | '.join(cells)} |")
        records.append({"model": name, **dict(zip(COLUMNS, own.T.tolist()))})
    args.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_endings():
        main()

"""How far the predictions of pruned models are from those of the dense model, beside their perplexities.

    python benchmarks/divergence.py DENSE PRUNED ... --dataset DATASET [options]

Perplexity compares a model with the text, which the dense model may predict badly itself: one that was trained on
code does so with articles, and a pruned model can come nearer to the text while it gets further from the dense model.
Prints a table for every range of test windows, counted from 1 (8 are the first 8): perplexity, the divergence
`KL(dense ‖ pruned)` in nats per token, the share of tokens of which both find the same one most likely, and the loss
above the dense model's; and differences in percent of the first pruned model's figure, with their paired standard
errors over windows. Windows are as long as in the first pruned model's record, and no others are run. The JSON has
a record per model with the figures of every window, in the order of `numbers`.

Windows without a start token may begin with any token, to which many models give a massive activation (an attention
sink). So every 32nd token of the windows is also run as a text of its own. It counts as lost if the largest norm of
its hidden states is less than half of the dense model's.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tables import difference, markdown, mean_and_error
from transformers import PreTrainedModel

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.config.texts import TextMix, mark_local_paths
from optimum_ffp.data import DataRequest, load_windows, window_length
from optimum_ffp.errors import FFPError
from optimum_ffp.evaluation.divergence import Predictions
from optimum_ffp.evaluation.record import perplexity_record
from optimum_ffp.hub.naming import short_name, without_folders
from optimum_ffp.hub.record import require_record
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.json import write_json
from optimum_ffp.utils.precision import in_compute_dtype


# Every n-th token of a window is run as a first token, and how many at once.
FIRST_TOKENS, AT_ONCE = 32, 256
VERSUS = "against the first"
COLUMNS = ("model", "perplexity", VERSUS, "divergence", VERSUS, "same token", "excess loss", VERSUS, "first lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--windows", nargs="+", default=["8"], metavar="N | FIRST-LAST")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("divergence.json"))
    args = parser.parse_args()

    ranges = [parse_range(words) for words in args.windows]
    numbers = sorted({number for one in ranges for number in one})
    options = LoadOptions(dtype=args.dtype)
    dense, tokenizer = load_any(args.dense, options)
    pruned = require_record(args.pruned[0])
    texts = TextMix.parse(mark_local_paths(args.dataset))
    request = DataRequest(
        texts=texts,
        reported=texts,
        length=window_length(pruned.window_length, dense.config),
        test=numbers[-1],
        seed=0,
        start_token=pruned.start_token,
    )
    test = load_windows(tokenizer, dense, request).test
    if len(test) < numbers[-1]:
        raise FFPError(f"{args.dataset} has {len(test)} test windows, not {numbers[-1]}; lower --windows")
    test = replace(test, tokens=test.tokens[np.array(numbers) - 1])

    with in_compute_dtype(dense):
        predictions = Predictions(dense, test.tokens)
        measured = perplexity_record(dense, test, store=predictions, label=f"Perplexity, {args.dense}")
        first = None if test.start_token else test.tokens[:, ::FIRST_TOKENS].flatten()
        norms = None if first is None else first_norms(dense, first)
    del dense
    records = [describe(args.dense, measured, numbers)]
    for source in args.pruned:
        model, _ = load_any(source, options)
        with in_compute_dtype(model):
            measured = perplexity_record(model, test, baseline=predictions, label=f"Perplexity, {source}")
            lost = {}
            if first is not None:
                lost = {"first_tokens": len(first), "lost": int((first_norms(model, first) < norms / 2).sum())}
        excess = np.subtract(measured["losses"], records[0]["losses"]).tolist()
        divergence = {"divergence": measured["divergences"], "agreement": measured["agreements"]}
        records.append(describe(source, measured, numbers) | divergence | {"excess_loss": excess} | lost)
        write_json(args.output, records)
    for windows in ranges:
        print(table(records, windows))


@torch.no_grad()
def first_norms(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The largest norm of the hidden states of every token as a text of its own, shape `[tokens]`."""
    norms = []
    for part in tokens.split(AT_ONCE):
        states = model(part[:, None].to(model.device), output_hidden_states=True, use_cache=False).hidden_states
        norms.append(torch.stack([state[:, 0].float().norm(dim=-1).cpu() for state in states]).amax(0))
    return torch.cat(norms)


def parse_range(words: str) -> range:
    """The numbers of the windows in `FIRST-LAST`, or of the first `N`."""
    first, _, last = words.rpartition("-")
    return range(int(first or 1), int(last) + 1)


def describe(source: str, measured: dict, numbers: list[int]) -> dict:
    """The record of a model, its windows and its loss on each of them."""
    windows = {name: measured[name] for name in ("dataset", "split", "window_length", "start_token")}
    return without_folders({"model": short_name(source), **windows, "numbers": numbers, "losses": measured["losses"]})


def table(records: list[dict], windows: range) -> str:
    """Means over a range of windows by model, and paired differences from the first pruned model."""
    chosen = np.isin(records[0]["numbers"], windows)
    names = ("losses", "divergence", "agreement", "excess_loss")
    rows = [{name: np.array(record[name])[chosen] for name in names if name in record} for record in records]
    first, lines = rows[1], []
    for record, row in zip(records, rows):
        cells = [record["model"], f"{np.exp(row['losses'].mean()):.2f}"]
        if "divergence" in row:
            versus = [difference([row["losses"] - first["losses"]])]
            versus += [against(first[name], row[name]) for name in ("divergence", "excess_loss")]
            versus = versus if row is not first else [""] * 3
            divergence, agreement, excess = (row[name].mean() for name in names[1:])
            cells += [versus[0], f"{divergence:.4f}", versus[1], f"{100 * agreement:.1f} %"]
            cells += [f"{excess:.4f}", versus[2]]
            cells += [f"{100 * record['lost'] / record['first_tokens']:.1f} %"] if "lost" in record else []
        lines.append(cells + [""] * (len(COLUMNS) - len(cells)))
    return f"\nWindows {windows[0]}-{windows[-1]}:\n\n{markdown(COLUMNS, lines)}"


def against(first: np.ndarray, figures: np.ndarray) -> str:
    """Mean difference in percent of the first model's mean, with its paired standard error over windows."""
    return "{:+.1f} ± {:.1f} %".format(*mean_and_error(100 * (figures - first) / first.mean()))


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Compares ways to choose the experts of a mixture that stay, and calibrations of what is left.

    python benchmarks/experts.py MODEL DATASET [--criteria random frequency reap loss] [--sparsities 0.25 0.5]
        [--calibrations none] [--seeds 0] [--seq-len 2048] [--eval-dataset A,B] [--eval-samples 10]
        [--options num_samples=32 ...] [--experts-implementation eager] [--output experts.json]

`random` and `frequency` (the number of tokens that are routed to an expert) are not options of a prune; `reap` and
`loss` are. Writes one JSON record per prune, as `compare.py`, after every prune, and prints a table: perplexity per
text (median over seeds), and its difference from `reap` without calibration, in percent of perplexity, with its paired
standard error over windows (mean over seeds). On a CPU, `--experts-implementation eager` is faster than the default of
transformers.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from compare import describe, read_options, spread
from tables import difference, markdown
from torch import nn

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.analysis.expert_criteria import reap
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.utils.json import write_json


def count(totals: torch.Tensor, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Scores experts by their tokens, in place of `add_contributions`, whose sums are divided by these numbers."""
    totals[1] += inputs[1].flatten().cpu().bincount(minlength=totals.shape[1])
    totals[0] = totals[1] ** 2


def draw(totals: torch.Tensor, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Scores experts at random, with torch's generator."""
    count(totals, module, inputs)
    totals[0] = totals[1].clamp_min(1) * torch.rand_like(totals[0])


CRITERIA = {"random": draw, "frequency": count, "reap": reap.add_contributions, "loss": reap.add_contributions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=[*CRITERIA])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--calibrations", nargs="+", default=["none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--eval-dataset", help="Texts of the test windows. Default: DATASET.")
    parser.add_argument("--eval-samples", type=int, default=10, help="Test windows per text.")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--experts-implementation", help="Default: that of transformers.")
    parser.add_argument("--output", type=Path, default=Path("experts.json"))
    args = parser.parse_args()

    records = []
    for seed in args.seeds:
        for criterion in args.criteria:
            for record in run(args, criterion, seed):
                records.append(record)
                write_json(args.output, records)
    print(table(records))


def run(args: argparse.Namespace, criterion: str, seed: int) -> Iterator[dict]:
    """Yields the records of one criterion and seed, which share the measurements."""
    config = FFPConfig(
        dataset=args.dataset,
        eval_dataset=args.eval_dataset,
        eval_samples=args.eval_samples,
        seq_len=args.seq_len,
        sparsity=args.sparsities[0],
        expert_criterion="loss" if criterion == "loss" else "reap",
        seed=seed,
        **read_options(args.options),
    )
    pruner = FFPPruner.from_pretrained(args.model, config)
    if args.experts_implementation:
        pruner.model.set_experts_implementation(args.experts_implementation)
    torch.manual_seed(seed)
    with patch.object(reap, "add_contributions", CRITERIA[criterion]):
        for sparsity in args.sparsities:
            for calibration in args.calibrations:
                result = pruner.prune(sparsity=sparsity, calibration=calibration)
                yield {"method": criterion, "calibration": calibration, "asked": sparsity} | describe(result)


def table(records: list[dict]) -> str:
    """Medians (and ranges) over seeds by criterion, calibration and sparsity, and paired differences."""
    rows = defaultdict(dict)
    for record in records:
        rows[record["asked"], record["calibration"], record["method"]][record["seed"]] = of_texts(record)
    texts = len(of_texts(records[0]))
    columns = ["experts removed", "calibration", "criterion"]
    columns += [f"text {text}{ending}" for text in range(1, texts + 1) for ending in ("", ": against reap")]
    lines = []
    for (asked, calibration, criterion), seeds in rows.items():
        cells, reference = [], rows.get((asked, "none", "reap"), {})
        for text in range(texts):
            losses = {seed: found[text]["calibrated"] for seed, found in seeds.items()}
            pairs = [losses[seed] - reference[seed][text]["calibrated"] for seed in losses if seed in reference]
            cells += [spread([*losses.values()]), difference(pairs) if seeds is not reference else ""]
        lines.append([f"{asked:.0%}", calibration, criterion, *cells])
    dense = [spread([text["dense"]]) for text in of_texts(records[0])]
    return f"{markdown(columns, lines)}\n\nBefore: {', '.join(dense)}."


def of_texts(record: dict) -> list[dict[str, np.ndarray]]:
    """Losses of the windows of every text, by model; what wasn't calibrated counts as if it was."""
    texts = [dict(zip(record["losses"], losses)) for losses in zip(*record["losses"].values())]
    texts = [{"calibrated": text.get("calibrated", text.get("searched"))} | text for text in texts]
    return [{model: np.array(losses) for model, losses in text.items()} for text in texts]


if __name__ == "__main__":
    with one_line_errors():
        main()

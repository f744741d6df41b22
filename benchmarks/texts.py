"""Calibrates on several texts in turn and measures every pruned model on all of them.

    python benchmarks/texts.py MODEL --texts A B [--on A B A,B] [--sparsity 0.2] [--seeds 0] [--seq-len 2048]
        [--eval-samples 20] [--options num_samples=32 ...] [--work FOLDER] [--save FOLDER] [--output texts.json]

`--texts` are the texts to measure on, `--on` those to calibrate and search on, as `--dataset` takes them; by default
each of the texts, and all in equal shares. Prunes with the default settings, writes one JSON record per prune (as
`compare.py`, with the losses of every test window of every text) and prints a table: perplexity per text (median over
seeds), how far above the dense model's it is, and how far above that of the model that was calibrated on that text
alone, in percent with the standard error over test windows. The file is updated after every prune; with `--work` an
interrupted run resumes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from compare import describe, read_options, spread
from tables import difference

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.checkpoint.saving import save_checkpoint
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.config.texts import TextMix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--on", nargs="+")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--eval-samples", type=int, default=20, help="Test windows per text.")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, help="Folder for finished work, to resume from.")
    parser.add_argument("--save", type=Path, help="Folder to write all pruned models to.")
    parser.add_argument("--output", type=Path, default=Path("texts.json"))
    args = parser.parse_args()

    calibrated_on = args.on or [*args.texts, ",".join(args.texts)]
    records = []
    for seed in args.seeds:
        for number, dataset in enumerate(calibrated_on):
            records.append(prune(args, dataset, seed, number))
            args.output.write_text(json.dumps(records, indent=2) + "\n")
    print(table(records))


def prune(args: argparse.Namespace, dataset: str, seed: int, number: int) -> dict:
    """Prunes with one text and returns the record."""
    config = FFPConfig(
        dataset=dataset,
        eval_dataset=",".join(args.texts),
        eval_samples=args.eval_samples,
        seq_len=args.seq_len,
        sparsity=args.sparsity,
        seed=seed,
        **read_options(args.options),
    )
    name = f"text{number}-seed{seed}"
    pruner = FFPPruner.from_pretrained(args.model, config, args.work and args.work / name)
    result = pruner.prune(resume=args.work is not None)
    if args.save:
        save_checkpoint(result, args.save / name, overwrite=True)
    return {"calibrated_on": TextMix.parse(dataset).published} | describe(result)


def table(records: list[dict]) -> str:
    """Perplexity per text by the text of calibration."""
    groups: dict[str, list[dict[str, dict]]] = {}
    for record in records:
        found = {record["test"]["dataset"]: record["losses"]}
        found |= {text["dataset"]: text["losses"] for text in record["other_texts"]}
        groups.setdefault(record["calibrated_on"], []).append(found)
    texts = list(found)
    columns = [f"{text} | above dense | above its own" for text in texts]
    lines = [f"| calibrated on | {' | '.join(columns)} |", "|---|" + "---:|" * (3 * len(texts))]
    for name, group in groups.items():
        cells = [name]
        for text in texts:
            losses = [np.array(found[text]["calibrated"]) for found in group]
            dense = np.array(group[0][text]["dense"])
            own = [np.array(found[text]["calibrated"]) for found in groups.get(text, [])]
            cells += [spread(losses), f"{np.expm1(np.mean(losses) - dense.mean()):.1%}"]
            cells.append(difference([one - other for one, other in zip(losses, own)]) if name != text else "")
        lines.append(f"| {' | '.join(cells)} |")
    dense = [f"{text} {spread([np.array(found[text]['dense'])])}" for text in texts]
    lines.append(f"\nDense: {', '.join(dense)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        main()

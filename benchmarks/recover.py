"""Recovers pruned models with several numbers of tokens, seeds and ranks of adapters, and compares what comes of it.

    python benchmarks/recover.py PRUNED ... --teacher MODEL --dataset A:0.5,B:0.5 [options]

Every pruned model is trained once for each combination, each time from its own start with a schedule of its own.
Writes one JSON record per recovery (losses of every test window, the curve on held-out windows) and prints a table:
perplexity on each text, pruned and recovered, how much of the way from pruned to dense that is in nats, with its
standard error over test windows, and the divergence on held-out windows. Where a combination was run with several
seeds the figures are means over seeds, and the range of the share is given. The file is updated after every recovery;
with `--work` an interrupted run resumes. Under `torchrun` several processes share every training.
"""

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
from compare import read_options
from tables import markdown

from optimum_ffp import FFPRecovery, RecoveryConfig
from optimum_ffp.checkpoint.recovered import published, save_recovered
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.config.texts import TextMix
from optimum_ffp.utils import processes
from optimum_ffp.utils.json import write_json
from optimum_ffp.utils.standard_error import block_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--eval-dataset")
    parser.add_argument("--max-tokens", nargs="+", default=["100k", "200k", "400k"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lora", nargs="+", type=int, default=[0], help="Ranks of adapters; 0 trains all weights.")
    parser.add_argument("--eval-samples", type=int, default=10, help="Test windows per text.")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="Options of RecoveryConfig.")
    parser.add_argument("--work", type=Path, help="Folder for finished work, to resume from with the same options.")
    parser.add_argument("--save", type=Path, help="Folder to write all recovered models to.")
    parser.add_argument("--output", type=Path, default=Path("recover.json"))
    args = parser.parse_args()

    records = []
    for combination in product(args.pruned, args.lora, args.max_tokens, args.seeds):
        records.append(recover(args, *combination))
        if processes.is_main():
            write_json(args.output, records)
    if processes.is_main():
        print(table(records))
    processes.leave()


def recover(args: argparse.Namespace, start: str, rank: int, tokens: str, seed: int) -> dict:
    """Recovers one model and returns the record."""
    config = RecoveryConfig(
        dataset=args.dataset,
        eval_dataset=args.eval_dataset,
        eval_samples=args.eval_samples,
        max_tokens=tokens,
        lora=rank,
        seed=seed,
        **read_options(args.options),
    )
    name = f"{Path(start).name}-lora{rank}-{tokens}-seed{seed}"
    recovery = FFPRecovery.from_pretrained(start, config, args.teacher, args.work and args.work / name)
    found = recovery.recover(resume=args.work is not None)
    if args.save and processes.is_main():
        # `recovery.save_pretrained` would remove the work folder.
        save_recovered(found, recovery.student, recovery.tokenizer, args.save / name, overwrite=True)
    losses = {model: [[round(loss, 6) for loss in text] for text in texts] for model, texts in recovery.losses.items()}
    return {"start": Path(start).name, "asked": tokens} | published(found).to_dict() | {"losses": losses}


def table(records: list[dict]) -> str:
    """One row per start, rank and number of tokens."""
    groups = defaultdict(list)
    for record in records:
        groups[record["start"], record["options"]["lora"], record["asked"]].append(record)
    first = records[0]
    texts = [TextMix.parse(text["dataset"]).published for text in (first["perplexity"], *first["other_texts"])]
    columns = ["start", "trained", "tokens", "seeds"]
    columns += [f"{text}, {column}" for text in texts for column in ("pruned", "recovered", "of the way to dense")]
    columns.append("divergence, held out")
    rows = []
    for (start, rank, asked), group in groups.items():
        cells = [start, f"LoRA {rank}" if rank else "all weights", asked, str(len(group))]
        for number in range(len(texts)):
            cells += [perplexity(group, name, number) for name in ("pruned", "recovered")]
            cells.append(share([way(record, number) for record in group]))
        before = np.mean([record["curve"][0]["kl"] for record in group])
        after = np.mean([record["kept"]["kl"] for record in group])
        rows.append([*cells, f"{before:.4f} to {after:.4f}"])
    dense = [perplexity(records, "dense", number) for number in range(len(texts))]
    named = ", ".join(f"{text} {value}" for text, value in zip(texts, dense))
    return f"{markdown(columns, rows)}\n\nDense: {named}; {len(first['losses']['dense'][0])} windows of each text."


def perplexity(group: list[dict], name: str, text: int) -> str:
    """Perplexity of a model on a text, from the mean loss over seeds and windows."""
    return f"{np.exp(np.mean([record['losses'][name][text] for record in group])):.2f}"


def way(record: dict, text: int) -> np.ndarray:
    """Nats that every test window has gained, relative to the mean distance from pruned to dense."""
    dense, pruned, recovered = (np.array(record["losses"][name][text]) for name in ("dense", "pruned", "recovered"))
    return (pruned - recovered) / (pruned - dense).mean()


def share(ways: list[np.ndarray]) -> str:
    """Mean in percent with its standard error over windows, and the range over seeds."""
    windows = 100 * np.mean(ways, axis=0)
    error = block_error(windows) or 0.0
    seeds = sorted(100 * one.mean() for one in ways)
    spread = f" ({seeds[0]:.1f}-{seeds[-1]:.1f})" if len(seeds) > 1 else ""
    return f"{windows.mean():.1f} ± {error:.1f} %{spread}"


if __name__ == "__main__":
    with one_line_errors():
        main()

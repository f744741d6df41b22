"""Trims the vocabulary of one model to several sizes, and compares each result with the dense model on the same text.

    python benchmarks/vocabulary.py MODEL DATASET --sizes 128k 64k [options]

Writes one JSON record per size, with the losses of every test window, and prints a table: parameters, tokens of the
first text that are split, and for each text the bits per byte and their increase, with its paired standard error over
blocks of neighboring windows. By default nothing else is pruned and nothing is trained; `--options` sets other options
of `FFPConfig`, such as `params=184M` or `calibration=model`.
"""

import argparse
from pathlib import Path
from statistics import fmean

from compare import describe, read_options
from tables import markdown

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.evaluation import bits_per_byte
from optimum_ffp.utils.json import write_json
from optimum_ffp.utils.standard_error import block_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", help="Text whose tokens are counted, and to calibrate on.")
    parser.add_argument("--sizes", nargs="+", required=True, help="Numbers of tokens, 'all', or 'auto'.")
    parser.add_argument("--eval-dataset", help="Texts to measure, separated by commas. Default: DATASET.")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--eval-samples", type=int, default=16)
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, help="Folder for finished work, to resume from.")
    parser.add_argument("--save", type=Path, help="Folder to write all models to.")
    parser.add_argument("--output", type=Path, default=Path("vocabulary.json"))
    args = parser.parse_args()
    data = {name: getattr(args, name) for name in ("dataset", "eval_dataset", "seq_len", "eval_samples")}
    options = {"calibration": "none", "num_samples": 128, "search_samples": 4} | read_options(args.options)
    sizes = (None if size == "all" else size for size in args.sizes)
    configs = [FFPConfig(**options | data, vocabulary=size) for size in sizes]
    pruner, records, rows = FFPPruner.from_pretrained(args.model, configs[0], args.work), [], []
    for result in pruner.sweep(configs, resume=args.work is not None):
        vocabulary = len(result.tokenizer)
        records.append({"vocabulary": vocabulary, "tokenized": result.vocabulary} | describe(result))
        split = 100 * result.vocabulary.get("split", 0)
        rows.append([f"{vocabulary:,}", f"-{100 * result.model_sparsity:.1f} %", f"{split:.1f} %"])
        for windows, figures, dense, pruned in zip(
            result.test_windows, result.perplexities.values(), result.losses["dense"], result.losses["calibrated"]
        ):
            before, after = (bits_per_byte(figures[name], windows.describe()) for name in ("dense", "calibrated"))
            differences = [other - one for one, other in zip(dense, pruned)]
            increase, error = (100 * one / fmean(dense) for one in (fmean(differences), block_error(differences)))
            rows[-1] += [f"{before:.4f}", f"{after:.4f}", f"{increase:+.2f} ± {error:.2f} %"]
        write_json(args.output, records)
        if args.save:
            pruner.save_pretrained(args.save / f"{vocabulary}", overwrite=True, keep_work=True)
    texts = [windows.dataset for windows in result.test_windows]
    columns = [
        "tokens",
        "model",
        "split",
        *(f"{text}{part}" for text in texts for part in (", dense", "", ", increase")),
    ]
    print(markdown(columns, rows))


if __name__ == "__main__":
    with one_line_errors():
        main()

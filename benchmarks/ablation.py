"""Ablation: the default with one option changed at a time, and the paper's Table 3.

    python benchmarks/ablation.py MODEL DATASET [options]

Prints a table: perplexity before (if reported) and after calibration, number of candidates and tokens evaluated.
Variants are calibrated by ridge regression, as candidates of the search are, except `uncalibrated` and
`distillation*`. Variants `no-search-*` evaluate a single candidate, to measure an option without the search.
Consecutive variants share the measurements, and the policy if the options of their searches are the same. `--options`
sets other options of `FFPConfig` for the variants of the default preset. With `--work` an interrupted run resumes when
it is started again.
"""

import argparse
from pathlib import Path

from compare import describe, read_options

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.utils.json import write_json


VARIANTS = {
    "default": {},
    "uncalibrated": {"calibration": "none"},
    "distillation": {"calibration": "layers"},
    "distillation-1-pass": {"calibration": "layers", "distillation_passes": 1},
    "distillation-4-passes": {"calibration": "layers", "distillation_passes": 4},
    "distillation-2048-tokens": {"calibration": "layers", "train_seq_len": 2048},
    "distillation-batch-4": {"calibration": "layers", "distillation_batch": 4},
    "distillation-rate-0.02": {"calibration": "layers", "distillation_rate": 0.02},
    "twice-the-search": {"search_steps": 2 * FFPConfig().resolve().search_steps},
    "one-update-window": {"update_samples": 1},
    "ppo-on-curves": {"agent": "ppo"},
    "reward-pruned": {"reward": "pruned"},
    "no-search": {"method": "no-search"},
    "uniform": {"method": "uniform"},
    "no-search-16-fisher-windows": {"method": "no-search", "fisher_samples": 16},
    "no-search-32-windows": {"method": "no-search", "num_samples": 32},
    "no-search-obs": {"method": "no-search", "criterion": "obs"},
    "no-search-flap": {"method": "no-search", "criterion": "flap"},
    "no-search-wanda": {"method": "no-search", "criterion": "wanda"},
    "no-search-kv-groups": {"method": "no-search", "attention": "kv-groups"},
    "no-search-query-heads": {"method": "no-search", "attention": "query-heads"},
    "ppo-water-filling": {"agent": "ppo", "mapping": "water-filling"},
    "ppo-greedy": {"agent": "ppo", "mapping": "greedy"},
    "table3-calibration-only": {"preset": "paper", "method": "uniform"},
    "table3-search-and-calibration": {"preset": "paper", "search_steps": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-samples", type=int, default=10)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, help="Folder for finished work, to resume from.")
    parser.add_argument("--output", type=Path, default=Path("ablation.json"))
    args = parser.parse_args()

    shared = {name: getattr(args, name) for name in ("dataset", "sparsity", "seed", "eval_samples", "seq_len")}
    shared |= {"calibration": "ridge", "method": "ffp"}
    options = read_options(args.options)
    records = []
    print("| variant | uncalibrated | perplexity | candidates | tokens |\n|---|---:|---:|---:|---:|")
    pruner = found = searched = None
    for name in args.variants:
        variant = VARIANTS[name]
        config = FFPConfig(**shared | ({} if "preset" in variant else options) | variant)
        if pruner is None or pruner.measured.differences(config):
            # Free the previous model before the next is loaded.
            pruner = found = result = None
            pruner = FFPPruner.from_pretrained(args.model, config, args.work and args.work / name)
            pruner.open_journal(resume=args.work is not None)
        # All options but those of calibration.
        asked = config.for_stages("measured", "search")
        if found is None or asked != searched:
            found, searched = pruner.search(config=config), asked
        result = pruner.finish(found, config)
        records.append({"variant": name} | describe(result))
        write_json(args.output, records)
        search, figures = result.search, result.tests[0][1]
        before, after = (f"{figures[stage]:.2f}" if stage in figures else "" for stage in ("searched", "calibrated"))
        counts = f"{len(search.log)} | {search.tokens_evaluated:,}"
        print(f"| {name} | {before} | {after} | {counts} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()

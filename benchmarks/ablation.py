"""What every idea brings: the default with one knob changed at a time, and the paper's Table 3.

    python benchmarks/ablation.py MODEL DATASET [--variants default prior ...] [--sparsity 0.2] [--seed 0]
        [--eval-samples 10] [--output ablation.json]

Prints a table: perplexity before (where that was searched for) and after calibration, candidates and tokens evaluated.
Variants named `prior-*` evaluate one candidate, so that they show the idea without the search. What is measured of the
dense model is measured once for all variants in a row that need the same.
"""

import argparse
import json
from pathlib import Path

from compare import describe

from optimum_ffp import FFPConfig, FFPPruner


VARIANTS = {
    "default": {},
    "ridge": {"calibration": "ridge"},
    "dense-target-0": {"dense_target": 0.0},
    "dense-target-1": {"dense_target": 1.0},
    "twice-the-search": {"search_steps": 64},
    "one-update-window": {"update_samples": 1},
    "bandit": {"agent": "bandit"},
    "ppo-on-curves": {"agent": "ppo"},
    "reward-searched": {"reward": "searched"},
    "prior": {"method": "prior"},
    "uniform": {"method": "uniform"},
    "prior-16-fisher-windows": {"method": "prior", "fisher_samples": 16},
    "prior-32-windows": {"method": "prior", "num_samples": 32},
    "prior-obs": {"method": "prior", "criterion": "obs"},
    "prior-flap": {"method": "prior", "criterion": "flap"},
    "prior-wanda": {"method": "prior", "criterion": "wanda"},
    "no-grad": {"grad": False},
    "ppo-water-filling": {"agent": "ppo", "mapping": "water-filling"},
    "ppo-greedy": {"agent": "ppo", "mapping": "greedy"},
    "table3-calibration-only": {"preset": "paper", "method": "uniform"},
    "table3-search-and-calibration": {"preset": "paper", "search_steps": 64},
}
# Of these knobs nothing depends that is measured before the search.
AFTERWARDS = {
    *("method", "agent", "reward", "search_steps", "update_samples"),
    *("calibration", "dense_target", "sequential_lambda", "held_out_samples"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-samples", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("ablation.json"))
    args = parser.parse_args()

    shared = {name: getattr(args, name) for name in ("dataset", "sparsity", "seed", "eval_samples")}
    records = []
    print("| variant | uncalibrated | perplexity | candidates | tokens |\n|---|---:|---:|---:|---:|")
    pruner = None
    for name in args.variants:
        config = FFPConfig(**shared | VARIANTS[name])
        if pruner is None or measured(config) != measured(pruner.config):
            # Those before go first: there is no need for several models.
            pruner = result = None
            pruner = FFPPruner.from_pretrained(args.model, config)
        pruner.config = config
        result = pruner.prune()
        records.append({"variant": name} | describe(result))
        args.output.write_text(json.dumps(records, indent=2) + "\n")
        search, figures = result.search, result.perplexities
        before = f"{figures['searched']:.2f}" if "searched" in figures else ""
        print(
            f"| {name} | {before} | {figures['calibrated']:.2f} | "
            f"{search['candidate_evaluations']} | {search['tokens_evaluated']:,} |",
            flush=True,
        )


def measured(config: FFPConfig) -> dict:
    """The knobs that decide what is measured before the search."""
    return {name: value for name, value in config.to_dict().items() if name not in AFTERWARDS}


if __name__ == "__main__":
    main()

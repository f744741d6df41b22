"""What every idea brings: the default with one knob changed at a time, and the paper's Table 3.

    python benchmarks/ablation.py MODEL DATASET [--variants default wanda ...] [--sparsity 0.2] [--seed 0]
        [--search-steps 32] [--eval-samples 10] [--output ablation.json]

Prints a table: perplexity before (where that was searched for) and after calibration, candidates and tokens evaluated.
Variants named `prior-*` evaluate one candidate, so that they show the idea without the search.
"""

import argparse
import json
from pathlib import Path

from compare import describe

from optimum_ffp import FFPConfig, FFPPruner


VARIANTS = {
    "default": {},
    "prior": {"method": "prior"},
    "prior-wanda": {"method": "prior", "criterion": "wanda"},
    "prior-flap": {"method": "prior", "criterion": "flap"},
    "prior-obs": {"method": "prior", "criterion": "obs"},
    "bandit": {"agent": "bandit"},
    "no-grad": {"grad": False},
    "reward-searched": {"reward": "searched"},
    "ppo-on-curves": {"agent": "ppo"},
    "ppo-water-filling": {"agent": "ppo", "mapping": "water-filling"},
    "ppo-greedy": {"agent": "ppo", "mapping": "greedy"},
    "one-update-window": {"update_samples": 1},
    "table3-calibration-only": {"preset": "paper", "method": "uniform"},
    "table3-search-and-calibration": {"preset": "paper"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search-steps", type=int, default=32)
    parser.add_argument("--eval-samples", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("ablation.json"))
    args = parser.parse_args()

    shared = {name: getattr(args, name) for name in ("dataset", "sparsity", "seed", "search_steps", "eval_samples")}
    records = []
    print("| variant | uncalibrated | perplexity | candidates | tokens |\n|---|---:|---:|---:|---:|")
    for name in args.variants:
        result = FFPPruner.from_pretrained(args.model, FFPConfig(**shared | VARIANTS[name])).prune()
        records.append({"variant": name} | describe(result))
        args.output.write_text(json.dumps(records, indent=2) + "\n")
        search, figures = result.search, result.perplexities
        before = f"{figures['searched']:.2f}" if "searched" in figures else ""
        print(
            f"| {name} | {before} | {figures['calibrated']:.2f} | "
            f"{search['candidate_evaluations']} | {search['tokens_evaluated']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

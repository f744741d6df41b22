"""Cost of a candidate evaluation relative to a dense forward pass on the same tokens, interleaved in one run.

    python benchmarks/candidate.py MODEL DATASET [--sparsities 0.2 0.3] [--repeats 7] [--device cpu]
        [--options num_samples=16 fisher_samples=4 ...] [--output candidate.json]

The candidate is the no-search policy at each sparsity, ridge-compensated, on the windows of one update. Prints
medians: the time of the candidate relative to the dense pass, its share that is not a forward pass, and the relative
time of an update of the default agent, a forward and a backward pass (the search counts it as 3). `--options` sets
options of `FFPConfig`; fewer calibration windows are faster and don't change the measurement.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from compare import read_options

from optimum_ffp import FFPConfig, FFPPruner, PruningPolicy
from optimum_ffp.analysis.measurements import policy_losses
from optimum_ffp.analysis.size_gradients import measure_size_gradients
from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.hub.naming import short_name, without_folders
from optimum_ffp.utils.precision import autocast_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.2, 0.3])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, default=Path("candidate.json"))
    args = parser.parse_args()

    config = FFPConfig(dataset=args.dataset, eval_samples=1, **read_options(args.options))
    pruner = FFPPruner.from_pretrained(args.model, config, device=args.device)
    sorted_model, curves = pruner.measured.prepared.sorted_model, pruner.measured.prepared.curves
    windows = pruner.measured.data.search.tokens[: config.update_samples]
    dtype = autocast_dtype(pruner.model, config.search_dtype)
    dense = PruningPolicy.dense(pruner.measured.units)

    def seconds(policy: PruningPolicy, compensate: bool) -> tuple[float, float]:
        start = clock(args.device)
        if compensate:
            # What the evaluation does once more, layer by layer.
            sorted_model.compensated(policy)
        middle = clock(args.device)
        policy_losses(sorted_model, [policy], windows, compensated=compensate, dtype=dtype)
        solve = middle - start
        return solve, clock(args.device) - middle - solve

    def update_seconds(policy: PruningPolicy) -> float:
        start = clock(args.device)
        measure_size_gradients(sorted_model, policy, windows, dtype)
        return clock(args.device) - start

    record = {"model": short_name(args.model), "options": without_folders(config.to_dict())}
    print("| sparsity | candidate / dense | not a forward pass | update / dense |\n|---|---:|---:|---:|")
    for sparsity in args.sparsities:
        policy = curves(np.zeros(len(pruner.measured.units)), pruner.budget(sparsity))
        rows = [
            (seconds(dense, False)[1], *seconds(policy, True), update_seconds(policy)) for _ in range(args.repeats + 1)
        ][1:]
        ratio = median((solve + forward) / whole for whole, solve, forward, _ in rows)
        share = median(solve / (solve + forward) for _, solve, forward, _ in rows)
        update = median(backward / whole for whole, _, _, backward in rows)
        record[sparsity] = {"candidate_over_dense": ratio, "share_not_forward": share, "update_over_dense": update}
        print(f"| {sparsity:.0%} | {ratio:.2f} | {share:.0%} | {update:.2f} |", flush=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n")


def clock(device: str | None) -> float:
    """Seconds, after all work on the device has finished."""
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    with one_line_endings():
        main()

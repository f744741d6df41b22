"""Prunes a model with several numbers of processes in turn, and compares time and bytes.

    python benchmarks/processes.py MODEL DATASET [--counts 1 2] [--threads 1] [--prune --num-samples 16 ...]
        [--output processes.json]

Every prune is `optimum-cli ffp prune --num-processes N` with `--threads` threads per process, so that N processes have
N times the cores of one. Writes a JSON record with the seconds of every stage and of the whole command, which also
imports and loads, and whether the weights are the same, and prints the ratios to the first number. Words after
`--prune` are options of `optimum-cli ffp prune`.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="Threads per process.")
    parser.add_argument("--output", type=Path, default=Path("processes.json"))
    parser.add_argument("--prune", nargs=argparse.REMAINDER, default=[], help="Options of the prunes.")
    args = parser.parse_args()
    records = []
    for count in args.counts:
        records.append(prune(args, count) | {"options": args.prune, "threads": args.threads})
        args.output.write_text(json.dumps(records, indent=2) + "\n")
        print(describe(records[0], records[-1]), flush=True)


def prune(args: argparse.Namespace, count: int) -> dict:
    """The record of one prune."""
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "ffp", "prune", "-m", args.model, str(out)]
        command += ["--dataset", args.dataset, "--num-processes", str(count), *args.prune]
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        found = json.loads((out / "ffp_config.json").read_text())["provenance"]
        weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {
        "processes": count,
        "whole": round(seconds, 2),
        "seconds": found["seconds"],
        "tokens": found["tokens"],
        "perplexity": found["perplexity"]["calibrated"],
        "weights": weights,
    }


def describe(first: dict, record: dict) -> str:
    """One line: time of the first prune divided by that of this one, by stage."""
    ratios = [f"whole command {first['whole'] / record['whole']:.2f}"]
    before, now = first["seconds"], record["seconds"]
    ratios += [f"all stages {sum(before.values()) / sum(now.values()):.2f}"]
    ratios += [f"{name} {before[name] / max(now[name], 0.01):.2f}" for name in before]
    same = "same" if record["weights"] == first["weights"] else "OTHER"
    return f"{record['processes']} processes: {same} weights; times faster: {', '.join(ratios)}"


if __name__ == "__main__":
    main()

"""Prunes a model in several ways that give the same weights, and compares time and bytes.

    python benchmarks/ways.py MODEL DATASET [--ways "--num-processes 1" "--num-processes 2" ...]
        [--threads 1] [--output ways.json] [--prune --num-samples 16 ...]

Every prune is `optimum-cli ffp prune` with the options of one way and those after `--prune`, and with `--threads`
threads per process, so that N processes have N times the cores of one. Writes a JSON record with the seconds of every
stage and of the whole command, which also imports and loads, and whether the weights are the same, and prints how many
times as fast as the first way each is. Files for `--offload disk` are probably in the page cache.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path


WAYS = ("--num-processes 1", "--num-processes 2", "--num-processes 1 --offload disk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="OPTIONS")
    parser.add_argument("--threads", type=int, default=1, help="Threads per process.")
    parser.add_argument("--output", type=Path, default=Path("ways.json"))
    parser.add_argument("--prune", nargs=argparse.REMAINDER, default=[], help="Options of all prunes.")
    args = parser.parse_args()
    records = []
    for way in args.ways:
        records.append({"way": way, "options": args.prune, "threads": args.threads} | prune(args, way))
        args.output.write_text(json.dumps(records, indent=2) + "\n")
        print(describe(records[0], records[-1]), flush=True)


def prune(args: argparse.Namespace, way: str) -> dict:
    """Prunes in one way and returns what is recorded of it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "ffp", "prune", "-m", args.model, str(out)]
        command += ["--dataset", args.dataset, *shlex.split(way), *args.prune]
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        found = json.loads((out / "ffp_config.json").read_text())["provenance"]
        weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {
        "whole": round(seconds, 2),
        "seconds": found["seconds"],
        "tokens": found["tokens"],
        "perplexity": found["perplexity"]["calibrated"],
        "weights": weights,
    }


def describe(first: dict, record: dict) -> str:
    """How many times as fast as the first way this one was, as a whole and by stage."""
    before, now = first["seconds"], record["seconds"]
    ratios = {"command": first["whole"] / record["whole"], "stages": sum(before.values()) / sum(now.values())}
    ratios |= {name: before[name] / max(now[name], 0.01) for name in before}
    same = "same" if record["weights"] == first["weights"] else "OTHER"
    return f"{record['way']}: {same} weights; " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    main()

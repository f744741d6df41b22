"""Prunes a model with this version of optimum-ffp and with an older one, and compares time and perplexity.

    git worktree add --detach OLD REVISION
    python benchmarks/versions.py MODEL DATASET OLD [--threads 1] [--options num_samples=32 ...]
        [--new-options 'attention="kv-groups"' 'calibration="ridge"'] [--output versions.json]

Each version prunes on the CPU, in a process of its own, one after the other. `--new-options` are those that this
version needs to do what the older one does by default. Writes a JSON record with the seconds of every stage and of
the whole prune, and the processor seconds of the whole prune, which other work on the machine changes less. Prints how
many times as fast this version is. Loading the model is not part of it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from compare import read_options

from optimum_ffp import FFPError
from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.hub.naming import short_name, without_folders


ROOT = Path(__file__).parent.parent
PRUNE = """
import json, sys, time
root, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, root)
import optimum_ffp
from optimum_ffp import FFPConfig, FFPPruner
assert optimum_ffp.__file__.startswith(root), optimum_ffp.__file__
pruner = FFPPruner.from_pretrained(model, FFPConfig(**options), device="cpu")
start, used = time.perf_counter(), time.process_time()
result = pruner.prune()
whole = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
print(json.dumps(whole | {"stages": result.cost.seconds, "perplexity": result.perplexity}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("old", type=Path, help="Folder of the older version.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="Options of both prunes.")
    parser.add_argument("--new-options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, default=Path("versions.json"))
    args = parser.parse_args()
    options = {"dataset": args.dataset} | read_options(args.options)
    both = {"old": (args.old, options), "new": (ROOT, options | read_options(args.new_options))}
    record = {"model": short_name(args.model), "threads": args.threads}
    for name, (root, given) in both.items():
        done = without_folders({"options": given}) | prune(root.resolve(), args.model, given, args.threads)
        record[name] = {"revision": revision(root)} | done
        args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(describe(record["old"], record["new"]))


def prune(root: Path, model: str, options: dict, threads: int) -> dict:
    """Prunes with the version in a folder."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", PRUNE, str(root), model, json.dumps(options)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise FFPError(f"the version in {root} can't prune {model} with these options; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


def revision(root: Path) -> str:
    """The commit that is checked out in a folder, and whether files differ from it; empty outside of git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip()


def describe(old: dict, new: dict) -> str:
    """How many times as fast the new version is, and its perplexity relative to the old one's."""
    ratios = {name: old[name] / new[name] for name in ("seconds", "processor_seconds")}
    ratios |= {name: old["stages"][name] / new["stages"][name] for name in old["stages"] if new["stages"].get(name)}
    figures = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    return f"times as fast: {figures}; perplexity {new['perplexity'] / old['perplexity'] - 1:+.2%}"


if __name__ == "__main__":
    with one_line_endings():
        main()

"""Prunes a model with several versions of optimum-ffp, and compares processor time, memory and perplexity.

    python benchmarks/versions.py MODEL TEXT --versions 49874c3 main [options]

Every version is a revision of this repository, checked out beside it for the time of the comparison, with the packages
of this environment. Each prune has a process of its own, and versions take turns, since the speed of a machine varies.
Writes a JSON record with the user and system time of every process, loading included, the most memory it had, and
the perplexity of its result.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from compare import read_options
from tables import markdown

from optimum_ffp.utils.json import write_json


ROOT = Path(__file__).parent.parent
PRUNE = """
import json, resource, sys
root, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, root)
import optimum_ffp
assert optimum_ffp.__file__.startswith(root), optimum_ffp.__file__
pruner = optimum_ffp.FFPPruner.from_pretrained(model, optimum_ffp.FFPConfig(**options), device="cpu")
result = pruner.prune()
used = resource.getrusage(resource.RUSAGE_SELF)
record = {"processor_seconds": used.ru_utime + used.ru_stime, "peak_memory_bytes": 1024 * used.ru_maxrss}
record |= {"perplexity": result.perplexity, "tokens": result.tokens, "compute_dtype": result.compute_dtype}
print(json.dumps(record | {"stages": result.cost.seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", help="The dataset.")
    parser.add_argument("--versions", nargs="+", required=True, metavar="REVISION", help="The first is compared with.")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="Options of all prunes.")
    parser.add_argument("--runs", type=int, default=1, help="Prunes per version.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("versions.json"))
    args = parser.parse_args()
    options = read_options(args.options)
    record = {"threads": args.threads, "options": options, "versions": {name: [] for name in args.versions}}
    for _ in range(args.runs):
        for revision, runs in record["versions"].items():
            runs.append(prune(revision, args.model, {"dataset": args.text} | options, args.threads))
            write_json(args.output, record)
    print(table(record["versions"]))


def prune(revision: str, model: str, options: dict, threads: int) -> dict:
    """Prunes with a version."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "version"
        subprocess.run([*git, "add", "--quiet", "--detach", str(root), revision], check=True)
        try:
            command = [sys.executable, "-c", PRUNE, str(root), model, json.dumps(options)]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(versions: dict[str, list[dict]]) -> str:
    """The fastest run of every version, with its time relative to that of the first version."""
    columns = ("version", "processor seconds", "of the first", "peak memory, GB", "perplexity", "tokens")
    fastest = {name: min(runs, key=lambda run: run["processor_seconds"]) for name, runs in versions.items()}
    rows, first = [], next(iter(fastest.values()))["processor_seconds"]
    for name, run in fastest.items():
        seconds, memory = run["processor_seconds"], run["peak_memory_bytes"] / 1e9
        cells = [f"{seconds:.0f}", f"{seconds / first:.2f}", f"{memory:.1f}", f"{run['perplexity']:.2f}"]
        rows.append([name, *cells, f"{run['tokens']:,}"])
    return markdown(columns, rows)


if __name__ == "__main__":
    main()

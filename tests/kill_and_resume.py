"""Kills prunes at random moments and resumes them.

    python tests/kill_and_resume.py MODEL DATA SCRATCH KILLS [OPTIONS as JSON]

Prints one JSON object a kill: how far the prune was, and which files differ from those of a prune that ran
undisturbed. A process is forked for every prune, so that none has to import everything again.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from optimum_ffp import FFPConfig, FFPPruner


# With more threads than one, a fork may inherit a pool whose threads are gone.
torch.set_num_threads(1)
SETTINGS = {"seq_len": 24, "num_samples": 8, "search_samples": 2, "eval_samples": 3}
SETTINGS |= {"search_steps": 24, "candidates": 4}


def start(model: Path, data: Path, folder: Path, options: dict, overwrite: bool = False) -> int:
    """Forks a process that prunes to `folder/out`, going on from `folder/work` if that is there."""
    child = os.fork()
    if child:
        return child
    work, out = folder / "work", folder / "out"
    config = FFPConfig(dataset=str(data), **SETTINGS | options)
    pruner = FFPPruner.from_pretrained(model, config, work_folder=work, device="cpu")
    pruner.prune(resume=True)
    pruner.save_pretrained(out, overwrite=overwrite)
    os._exit(0)


def count_entries(folder: Path) -> int:
    return len([*(folder / "work").glob("*")])


def watch(child: int, folder: Path, entries: float = math.inf) -> int:
    """Waits until a process has ended or its work has this many entries, and returns how many it had at most."""
    most = 0
    while most < entries and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
        most = max(most, count_entries(folder))
    return most


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), status


def read_files(folder: Path) -> dict[str, bytes]:
    """What must not depend on whether a prune was killed: everything but times, memory and pictures of them."""
    files = {path.name: path.read_bytes() for path in sorted((folder / "out").rglob("*")) if path.is_file()}
    record = json.loads(files.pop("ffp_config.json"))
    files["policy"] = json.dumps([record["policy"], record["search"], record["provenance"]["perplexity"]]).encode()
    return {name: text for name, text in files.items() if not name.endswith((".png", ".html", ".md"))}


def leftover_files(folder: Path) -> list[str]:
    """What a prune that has ended doesn't leave."""
    return sorted(path.name for path in folder.iterdir() if path.name != "out") if folder.exists() else []


def main(model: Path, data: Path, scratch: Path, kills: int, options: dict) -> None:
    whole = scratch / "whole"
    child = start(model, data, whole, options)
    began, entries = time.monotonic(), watch(child, whole)
    seconds = time.monotonic() - began
    finish(child)
    expected = read_files(whole)
    generator = random.Random(0)
    for number in range(kills):
        folder = scratch / str(number)
        child = start(model, data, folder, options)
        # By progress, since the time that a prune takes varies with what else runs.
        watch(child, folder, generator.randrange(1, entries))
        time.sleep(generator.uniform(0, seconds / entries))
        os.kill(child, signal.SIGKILL)
        finish(child)
        left_entries = count_entries(folder)
        if not (folder / "out").exists() or leftover_files(folder):
            # Killed before it removed the lock of its work, which was removed already, it begins again.
            finish(start(model, data, folder, options, overwrite=not left_entries))
        found = read_files(folder)
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        left = leftover_files(folder)
        print(json.dumps({"entries": left_entries, "differing": differing, "left": left}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]), json.loads(sys.argv[5]) if len(sys.argv) > 5 else {})

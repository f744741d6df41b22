"""Prefill and decode speed of a dense and a pruned model, interleaved so that noise affects both alike.

    python benchmarks/latency.py DENSE PRUNED [--prompt 512] [--new 32] [--batch 1] [--repeats 7] [--device cpu]
        [--dtype float32] [--output latency.json]

Prompts are random tokens: speed does not depend on them. Prints the median tokens per second of both, and their ratio.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.evaluation import measure_speed
from optimum_ffp.hub.naming import short_name
from optimum_ffp.modeling.loading import LoadOptions, load_any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("latency.json"))
    args = parser.parse_args()

    options = LoadOptions(device=args.device, dtype=args.dtype)
    models = {name: load_any(getattr(args, name), options)[0] for name in ("dense", "pruned")}
    speeds = measure_speed(models, args.prompt, args.new, args.batch, args.repeats)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    record = {"settings": settings | {name: short_name(settings[name]) for name in models}}
    for name, speed in speeds.items():
        record[name] = {"parameters": models[name].num_parameters()} | asdict(speed)
    print("| | dense | pruned | ratio |\n|---|---:|---:|---:|")
    for key, scale, label in (
        ("parameters", 1e6, "million parameters"),
        ("prefill", 1, "prefill, tokens per second"),
        ("decode", 1, "decode, tokens per second"),
    ):
        dense, pruned = (record[name][key] / scale for name in models)
        print(f"| {label} | {dense:,.1f} | {pruned:,.1f} | {pruned / dense:.2f} |")
    args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_endings():
        main()

"""Prefill and decode speed of a dense and a pruned model, interleaved in one run so that noise hits both.

    python benchmarks/latency.py DENSE PRUNED [--prompt 512] [--new 32] [--batch 1] [--repeats 7] [--device cpu]
        [--dtype float32] [--output latency.json]

Random tokens, no text: speed does not depend on them. Prints the median tokens a second of both, and their ratio.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_ffp import FFPModelForCausalLM


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

    options = {"dtype": getattr(torch, args.dtype)}
    models = {
        "dense": AutoModelForCausalLM.from_pretrained(args.dense, **options).to(args.device).eval(),
        "pruned": FFPModelForCausalLM.from_pretrained(args.pruned, **options).to(args.device).eval(),
    }
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, args.prompt)
    prompt = torch.randint(10, models["dense"].config.vocab_size, shape, generator=generator).to(args.device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in range(args.repeats + 1):
        for name, model in models.items():
            measured = measure(model, prompt, args.new)
            if repeat:  # The first round warms up.
                times[name].append(measured)

    record = {"settings": {name: str(value) for name, value in vars(args).items()}}
    for name, rows in times.items():
        prefill, decode = (median(column) for column in zip(*rows))
        record[name] = {
            "parameters": models[name].num_parameters(),
            "prefill_tokens_per_second": args.batch * args.prompt / prefill,
            "decode_tokens_per_second": args.batch * args.new / decode,
        }
    print("| | dense | pruned | ratio |\n|---|---:|---:|---:|")
    for key in record["dense"]:
        dense, pruned = record["dense"][key], record["pruned"][key]
        print(f"| {key.replace('_', ' ')} | {dense:,.1f} | {pruned:,.1f} | {pruned / dense:.2f} |")
    args.output.write_text(json.dumps(record, indent=2) + "\n")


@torch.no_grad()
def measure(model: PreTrainedModel, prompt: torch.Tensor, new: int) -> tuple[float, float]:
    """Seconds of the prompt's forward pass, and of decoding `new` tokens after it."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    marks = []
    for count in (1, 1 + new):
        start = clock(model)
        model.generate(prompt, max_new_tokens=count, min_new_tokens=count, **options)
        marks.append(clock(model) - start)
    return marks[0], marks[1] - marks[0]


def clock(model: PreTrainedModel) -> float:
    """Seconds, once everything that was asked of the device is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


if __name__ == "__main__":
    main()

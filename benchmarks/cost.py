"""Time and peak memory per stage of a prune of a model of any shape, with random weights.

    python benchmarks/cost.py CONFIG [options]

CONFIG is a `config.json` or a folder with one. Builds models with random weights and the given numbers of layers, and
prunes them on random tokens, which does not change the cost. Without `--layers` the whole model is measured. From two
smaller numbers of layers the cost of the whole model is extrapolated: per stage, time and memory are a constant plus a
part proportional to the number of layers. `--options` sets options of `FFPConfig`.
"""

import argparse
import gc
from pathlib import Path

import torch
from compare import read_options
from make_checkpoint import with_layers
from tables import markdown
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.data import DataSplits, Windows, window_length
from optimum_ffp.hub.naming import short_name
from optimum_ffp.utils.json import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--layers", nargs="+", type=int, help="One number, or two to extrapolate from. Default: all.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--eval-samples", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("cost.json"))
    args = parser.parse_args()

    shape = AutoConfig.from_pretrained(args.config)
    layers = args.layers or [shape.num_hidden_layers]
    config = FFPConfig(dataset="random tokens", eval_samples=args.eval_samples, **read_options(args.options))
    runs = {count: measure(shape, count, config, args) for count in sorted(layers)}
    record = {
        "shape": shape.to_dict() | {"_name_or_path": short_name(str(args.config))},
        "options": config.to_dict(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "dtype": args.dtype,
        "measured": runs,
        "stages": extrapolate(runs, shape.num_hidden_layers),
    }
    write_json(args.output, record)
    print(table(record, shape.num_hidden_layers))


def measure(shape: PretrainedConfig, layers: int, config: FFPConfig, args: argparse.Namespace) -> dict:
    """Prunes a random model with `layers` layers; returns seconds and peak bytes per stage."""
    smaller = with_layers(shape, layers)
    torch.manual_seed(0)
    with torch.device(args.device):
        model = (
            AutoModelForCausalLM.from_config(smaller, dtype=getattr(torch, args.dtype)).eval().requires_grad_(False)
        )
    # A tokenizer is required but not used: the windows are given.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"word": 0}, unk_token="word")))
    windows = random_windows(config, window_length(config.seq_len, shape), shape.vocab_size)
    pruner = FFPPruner(model, tokenizer, config, "random weights", data=windows)
    cost = pruner.prune().cost
    result = {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
    del model, pruner, cost
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return result


def random_windows(config: FFPConfig, length: int, vocabulary: int) -> DataSplits:
    """Windows of random tokens, as many as the config requests."""
    generator = torch.Generator().manual_seed(0)
    counts = {
        "calibration": config.num_samples,
        "search": config.search_samples,
        "held out": config.held_out_samples,
        "test": config.eval_samples,
    }
    *others, test = (
        Windows(torch.randint(vocabulary, (count, length), generator=generator), "random", split)
        for split, count in counts.items()
    )
    return DataSplits(*others, tests=(test,))


def extrapolate(runs: dict[int, dict], layers: int) -> dict[str, dict[str, float]]:
    """Seconds and bytes per stage at the full number of layers, linear in the first and last run."""
    first, last = min(runs), max(runs)
    stages = {}
    for stage in runs[last]["seconds"]:
        stages[stage] = {}
        for figure in ("seconds", "peak_bytes"):
            low, high = runs[first][figure][stage], runs[last][figure][stage]
            slope = (high - low) / (last - first) if last > first else 0.0
            stages[stage][figure] = high + max(0.0, slope) * (layers - last)
    return stages


def table(record: dict, layers: int) -> str:
    stages = record["stages"]
    whole = {
        figure: combine(stage[figure] for stage in stages.values())
        for figure, combine in (("seconds", sum), ("peak_bytes", max))
    }
    rows = [
        [name, f"{stage['seconds'] / 60:.2f}", f"{stage['peak_bytes'] / 2**30:.2f}"]
        for name, stage in (stages | {"all": whole}).items()
    ]
    how, counts = "measured whole", sorted(record["measured"])
    if counts != [layers]:
        how = f"extrapolated from runs with {' and '.join(map(str, counts))} layers"
    note = f"{layers} layers, {how}; {record['device']}, {record['dtype']}."
    return f"{markdown(['stage', 'minutes', 'peak memory [GiB]'], rows)}\n\n{note}"


if __name__ == "__main__":
    with one_line_errors():
        main()

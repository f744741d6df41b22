"""Writes a checkpoint of any shape with random weights, layer by layer, for measurements of time and memory.

    python benchmarks/make_checkpoint.py CONFIG OUT [options]

`CONFIG` is a folder with `config.json`, or that file. Every layer is one shard, so that no more than one is in memory,
with a tensor per expert as on the Hub.
The tokenizer is copied from `--tokenizer`; its tokens must be among those of the config. Weights of projections and
embeddings are normally distributed with `initializer_range`, norms are 1 and biases 0.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.modeling.auto import PER_LAYER_LISTS
from optimum_ffp.modeling.loading import empty_model
from optimum_ffp.utils.json import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    config = AutoConfig.from_pretrained(args.config)
    if args.layers:
        config = with_layers(config, args.layers)
    config.dtype = getattr(torch, args.dtype)
    model = empty_model(config)
    config.architectures = [type(model).__name__]
    shards: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    tied = set(model.all_tied_weights_keys)
    for name, parameter in model.named_parameters():
        if name not in tied:
            shards[next(iter(re.findall(r"\.\d+\.", name)), "")][name] = parameter
    args.out.mkdir(parents=True)
    torch.manual_seed(args.seed)
    weight_map, total = {}, 0
    for number, parameters in enumerate(shards.values(), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: fill(name, parameter, config.initializer_range) for name, parameter in parameters.items()}
        tensors = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, tensors).items()}
        save_file(tensors, args.out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(args.out / "model.safetensors.index.json", index)
    config.save_pretrained(args.out)
    if args.tokenizer:
        AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(args.out)
    print(f"{args.out}: {total / 2**30:.2f} GiB in {len(shards)} files")


def with_layers(shape: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The config of a model of the same shape with its first layers alone."""
    options = shape.to_dict() | {"num_hidden_layers": layers}
    for name in PER_LAYER_LISTS:
        if options.get(name):
            options[name] = options[name][:layers]
    return type(shape)(**options)


def fill(name: str, parameter: torch.Tensor, deviation: float) -> torch.Tensor:
    if parameter.dim() > 1:
        return (torch.randn(parameter.shape) * deviation).to(parameter.dtype)
    return torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=parameter.dtype)


if __name__ == "__main__":
    with one_line_errors():
        main()

"""Quantizes the projections of a pruned model to int8 with torchao, saves and reloads it, and compares perplexity.

pip install -e ".[torchao]"
python examples/quantize.py PRUNED DATASET --output PRUNED-int8

Scales are per row of a weight, so that any number of heads and channels is supported. The result is loaded like the
pruned model, and needs torchao.
"""

import argparse
from functools import partial
from pathlib import Path

from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoTokenizer, TorchAoConfig

from optimum_ffp import FFPModelForCausalLM, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a pruned model.")
    parser.add_argument("dataset", help="Dataset as for `optimum-cli ffp prune`; its test split is used.")
    parser.add_argument("--output", required=True, help="Folder to write.")
    parser.add_argument("--eval-samples", type=int, default=10, help="Number of test windows.")
    parser.add_argument("--seq-len", type=int, help="Tokens per window. Default: the model's maximum, up to 2048.")
    args = parser.parse_args()
    output = Path(args.output)

    load = partial(FFPModelForCausalLM.from_pretrained, device_map="auto")
    quantized = load(args.model, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    quantized.save_pretrained(output)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(output)

    sizes = {"eval_samples": args.eval_samples, "seq_len": args.seq_len}
    print(evaluate(load(output), load(args.model), dataset=args.dataset, speed=False, **sizes))
    # A quantized tensor reports its size before quantization, so the size of the files is printed.
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"weights: {size / 2**20:,.1f} MiB in {output}")


if __name__ == "__main__":
    main()

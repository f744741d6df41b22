"""Quantises the projections of a pruned model to int8 with torchao, saves and reloads it, and compares perplexity.

pip install -e ".[torchao]"
python examples/quantize.py PRUNED DATASET --output PRUNED-int8

Scales are per row of a weight, so that any number of heads and channels is supported. The result is loaded like the
pruned model, and needs torchao.
"""

import argparse
from functools import partial
from pathlib import Path

from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoTokenizer, PreTrainedModel, TorchAoConfig

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.data import DataRequest, Windows, load_windows, window_length
from optimum_ffp.evaluation.metric import Perplexity
from optimum_ffp.hub.record import prune_record, recorded_start_token


def report(label: str, model: PreTrainedModel, windows: Windows) -> None:
    perplexity = Perplexity().compute(predictions=windows.tokens.tolist(), model=model)["perplexity"]
    print(f"{label}: perplexity {perplexity:.2f} on {len(windows)} windows of {windows.length}, {windows.split}")


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
    model, tokenizer = load(args.model), AutoTokenizer.from_pretrained(args.model)
    length, start_token = window_length(args.seq_len, model.config), recorded_start_token(prune_record(args.model))
    request = DataRequest(length, 0, 0, args.eval_samples, seed=0, start_token=start_token)
    windows = load_windows(args.dataset, None, tokenizer, model, request).test
    report("pruned", model, windows)

    quantized = load(args.model, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    quantized.save_pretrained(output)
    tokenizer.save_pretrained(output)
    report("int8, loaded again", load(output), windows)
    # A quantised tensor reports its size before quantisation, so the size of the files is printed.
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"weights: {model.get_memory_footprint() / 2**20:,.0f} MiB, now {size / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()

"""Prunes five models with `prune_job.py`, which recovers, evaluates and uploads each of them.

python examples/zoo.py --plan
python examples/zoo.py --user USER

The plan needs neither weights nor a network.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from optimum_ffp import FFPConfig
from optimum_ffp.modeling.loading import LoadOptions, empty_model
from optimum_ffp.planning.make import make_plans


DATASET, MAX_TOKENS = "wikitext2,c4", 2_000_000
# Model, parameters to keep, and its config: class, hidden size, FFN width, layers, query heads, KV heads, vocabulary.
ZOO = [
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "115M", LlamaConfig, 576, 1536, 30, 9, 3, 49152),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", "300M", LlamaConfig, 960, 2560, 32, 15, 5, 49152),
    ("Qwen/Qwen2.5-0.5B-Instruct", "420M", Qwen2Config, 896, 4864, 24, 14, 2, 151936),
    ("Qwen/Qwen3-0.6B", "500M", Qwen3Config, 1024, 3072, 28, 16, 8, 151936),
    ("Qwen/Qwen3-1.7B", "1.4B", Qwen3Config, 2048, 6144, 28, 16, 8, 151936),
]
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def print_plan(model_id: str, params: str, config: PretrainedConfig) -> None:
    """Prints the parameters of a model before and after, and the most tokens that a prune and a recovery read."""
    model = empty_model(config)
    (plan,), estimate = make_plans([FFPConfig(params=params, dataset=DATASET)], model, LoadOptions())
    dense, calibration = model.num_parameters(), plan.calibration
    tokens = f"{estimate.tokens:>12,} tokens to prune ({calibration}), {MAX_TOKENS:,} to recover"
    print(f"{model_id:<36}{dense:>14,} parameters -> {params:<5}{tokens}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--plan", action="store_true", help="Print sizes and tokens only.")
    action.add_argument("--user", help="User or organization of the Hub to upload to.")
    args = parser.parse_args()
    for model_id, params, config_class, *sizes, vocabulary in ZOO:
        shape = dict(zip(NAMES, sizes), vocab_size=vocabulary, max_position_embeddings=8192, tie_word_embeddings=True)
        if args.plan:
            print_plan(model_id, params, config_class(**shape, dtype="bfloat16"))
            continue
        name = f"{model_id.split('/')[1]}-ffp-{params}"
        options = ["--params", params, "--max-tokens", str(MAX_TOKENS), "--push-to-hub", f"{args.user}/{name}"]
        job = [sys.executable, Path(__file__).with_name("prune_job.py"), model_id, DATASET, name, *options]
        subprocess.run(job, check=True)


if __name__ == "__main__":
    main()

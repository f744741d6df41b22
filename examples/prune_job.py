# /// script
# requires-python = ">=3.10"
# dependencies = ["optimum-ffp[gguf]"]
# ///
"""Prunes a model to a budget, recovers it, evaluates both, generates text, and uploads the result if told where to.

The file installs what it needs, so it runs anywhere: on your machine, in Colab, or as a job of the Hub.

uv run prune_job.py Qwen/Qwen3-0.6B chats.jsonl out --params 500M
hf jobs uv run --flavor a10g-small --secrets HF_TOKEN prune_job.py Qwen/Qwen3-0.6B DATASET out --push-to-hub USER/NAME
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ffp import FFPConfig, FFPPruner, FFPRecovery, RecoveryConfig, evaluate


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="Hub id or folder of a dense model.")
parser.add_argument("dataset", help="Text to prune, train and evaluate on: a file, a folder or a dataset of the Hub.")
parser.add_argument("output", help="Prefix of the two folders to write.")
parser.add_argument("--params", help="Parameters of the pruned model, such as 500M. Default: 20 %% of the blocks go.")
parser.add_argument("--max-tokens", default="2M", help="Tokens to train on.")
parser.add_argument("--seq-len", type=int, help="Tokens per window. Default: the model's maximum, up to 2048.")
parser.add_argument("--prompt", default="The capital of France is")
parser.add_argument("--push-to-hub", metavar="REPO", help="Repository of the Hub to upload the recovered model to.")
args = parser.parse_args()
pruned, recovered = f"{args.output}-pruned", f"{args.output}-recovered"

# Prune: choose how many heads and channels each layer keeps, and adapt the remaining weights.
config = FFPConfig(params=args.params, dataset=args.dataset, seq_len=args.seq_len)
pruner = FFPPruner.from_pretrained(args.model, config)
print(pruner.prune())
pruner.save_pretrained(pruned)
# Free the models, which recovery loads itself.
del pruner

# Recover: train the pruned model to match the dense model's predictions.
config = RecoveryConfig(dataset=args.dataset, max_tokens=args.max_tokens, seq_len=args.seq_len)
recovery = FFPRecovery.from_pretrained(pruned, config, teacher=args.model)
recovery.recover()
recovery.save_pretrained(recovered)

# Evaluate: perplexity, divergence from the first baseline, size and speed.
figures = evaluate(recovered, [args.model, pruned], dataset=args.dataset)
print(figures)

# Generate, with transformers alone. The checkpoint has its own modeling code.
model = AutoModelForCausalLM.from_pretrained(recovered, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(recovered)
inputs = tokenizer(args.prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32, do_sample=False)[0], skip_special_tokens=True))

if args.push_to_hub:
    print(f"uploaded: {recovery.push_to_hub(args.push_to_hub)}")

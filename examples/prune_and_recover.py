"""Prunes a model, recovers it, compares it with the dense model, and generates text, all from Python.

python examples/prune_and_recover.py MODEL DATASET OUTPUT [--sparsity 0.2] [--max-tokens 2M] [--seq-len 2048]
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ffp import FFPConfig, FFPPruner, FFPRecovery, RecoveryConfig, evaluate


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="Hub id or folder of a dense model.")
parser.add_argument("dataset", help="Text to prune, train and evaluate on, as for `ffp prune --dataset`.")
parser.add_argument("output", help="Prefix of the two folders to write.")
parser.add_argument("--sparsity", type=float, default=0.2, help="Fraction of the blocks to remove.")
parser.add_argument("--max-tokens", default="2M", help="Tokens to train on.")
parser.add_argument("--seq-len", type=int, help="Tokens per window. Default: the model's maximum, up to 2048.")
parser.add_argument("--prompt", default="The capital of France is")
args = parser.parse_args()
pruned, recovered = f"{args.output}-pruned", f"{args.output}-recovered"

# Prune: choose how many heads and channels each layer keeps, and adapt the remaining weights.
config = FFPConfig(sparsity=args.sparsity, dataset=args.dataset, seq_len=args.seq_len)
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
del recovery

# Evaluate: perplexity, divergence from the first baseline, size and speed.
figures = evaluate(recovered, [args.model, pruned], dataset=args.dataset)
print(figures)

# Generate, with transformers alone. The checkpoint has its own modeling code.
model = AutoModelForCausalLM.from_pretrained(recovered, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(recovered)
inputs = tokenizer(args.prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32, do_sample=False)[0], skip_special_tokens=True))

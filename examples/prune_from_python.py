"""Prunes a model at two sparsities from Python; the second search starts from the agent of the first.

python examples/prune_from_python.py MODEL DATASET OUTPUT [SEQ_LEN]
"""

import sys

from optimum_ffp import FFPConfig, FFPPruner


def main(model_id: str, dataset: str, output: str, seq_len: str = "2048") -> None:
    config = FFPConfig(dataset=dataset, seq_len=int(seq_len), eval_samples=8)
    pruner = FFPPruner.from_pretrained(model_id, config)
    agent = None
    for sparsity in (0.1, 0.2):
        result = pruner.prune(sparsity, warm_start=agent)
        pruner.save_pretrained(f"{output}-{100 * sparsity:g}")
        print(f"{sparsity:.0%}: {result.parameters:,} parameters, perplexity {result.perplexity:.2f}")
        agent = result.agent


if __name__ == "__main__":
    main(*sys.argv[1:5])

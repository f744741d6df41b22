"""Prunes a model at two sparsities from Python; the second search starts from the agent of the first.

python examples/prune_from_python.py MODEL DATASET OUTPUT [SEQ_LEN]
"""

import sys

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.utils.folders import check_output


def main(model_id: str, dataset: str, output: str, seq_len: str = "2048") -> None:
    config = FFPConfig(dataset=dataset, seq_len=int(seq_len), eval_samples=8)
    pruner = FFPPruner.from_pretrained(model_id, config)
    folders = {sparsity: f"{output}-{100 * sparsity:g}" for sparsity in (0.1, 0.2)}
    for folder in folders.values():
        # Before the work begins.
        check_output(folder)
    agent = None
    for sparsity, folder in folders.items():
        result = pruner.prune(sparsity, warm_start=agent)
        pruner.save_pretrained(folder)
        print(f"{sparsity:.0%}: {result.parameters:,} parameters, perplexity {result.perplexity:.2f}")
        agent = result.agent


if __name__ == "__main__":
    main(*sys.argv[1:5])

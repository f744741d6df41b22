"""Prunes a model at two sparsities from Python; the second search starts from the agent of the first.

python examples/prune_from_python.py MODEL DATASET OUTPUT [SEQ_LEN]
"""

import argparse

from optimum_ffp import FFPConfig, FFPPruner


def main(model_id: str, dataset: str, output: str, seq_len: int | None) -> None:
    config = FFPConfig(dataset=dataset, seq_len=seq_len, eval_samples=8)
    pruner = FFPPruner.from_pretrained(model_id, config)
    agent = None
    for sparsity in (0.1, 0.2):
        result = pruner.prune(warm_start=agent, sparsity=sparsity)
        pruner.save_pretrained(f"{output}-{100 * sparsity:g}")
        print(f"{sparsity:.0%}: {result.parameters:,} parameters, perplexity {result.perplexity:.2f}")
        agent = result.agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a dense model.")
    parser.add_argument("dataset", help="Text to calibrate on, as for --dataset.")
    parser.add_argument("output", help="Beginning of the names of the two folders to write.")
    parser.add_argument("seq_len", nargs="?", type=int, help="Tokens per window. Default: up to 2048.")
    args = parser.parse_args()
    main(args.model, args.dataset, args.output, args.seq_len)

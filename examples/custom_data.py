"""Prunes a chat model on your own conversations, rendered by its chat template.

python examples/custom_data.py MODEL CONVERSATIONS.jsonl OUTPUT [--sparsity 0.2]

Each line of the file is `{"messages": [{"role": "user", "content": ...}, ...]}`. One conversation in ten is for the
search and one in ten for the test, so that neither uses calibration text. The texts are written to the new folder
OUTPUT-data, in a format of `--dataset`: a folder with train, validation and test files.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from optimum_ffp import FFPConfig, FFPPruner


# Splits of ten consecutive conversations.
SPLITS = ("validation", "test", *["train"] * 8)


def write_dataset(conversations: Path, model_id: str, folder: Path) -> None:
    """Renders conversations by the model's chat template and writes a file per split."""
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    lines = filter(str.strip, conversations.read_text(encoding="utf-8").splitlines())
    for number, line in enumerate(lines):
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        rows[SPLITS[number % len(SPLITS)]].append(json.dumps({"text": text}) + "\n")
    folder.mkdir(parents=True)
    for split, texts in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(texts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a dense chat model.")
    parser.add_argument("conversations", type=Path)
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--search-steps", type=int, default=32, help="Candidate evaluations.")
    parser.add_argument("--num-samples", type=int, default=128, help="Number of calibration windows.")
    parser.add_argument("--search-samples", type=int, default=16, help="Number of search windows.")
    parser.add_argument("--seq-len", type=int, default=1024, help="Tokens per window.")
    args = parser.parse_args()

    folder = Path(f"{args.output.rstrip('/')}-data")
    write_dataset(args.conversations, args.model, folder)
    sizes = {name: getattr(args, name) for name in ("search_steps", "num_samples", "search_samples", "seq_len")}
    config = FFPConfig(sparsity=args.sparsity, dataset=str(folder), **sizes)
    pruner = FFPPruner.from_pretrained(args.model, config)
    result = pruner.prune()
    pruner.save_pretrained(args.output)
    print(f"perplexity on conversations: {result.perplexity:.2f}")


if __name__ == "__main__":
    main()

"""Prunes a chat model on your own conversations, rendered by its chat template.

python examples/custom_data.py MODEL CONVERSATIONS.jsonl OUTPUT [--sparsity 0.2]

Each line of the file is `{"messages": [{"role": "user", "content": ...}, ...]}`. One conversation in ten is for the
search and one in ten for the test, so that neither uses calibration text. The texts are written to OUTPUT-data, in a
format of `--dataset`: a folder with train, validation and test files. An existing checkpoint in OUTPUT is replaced.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.utils.folders import check_output


# Splits of ten consecutive conversations.
SPLITS = ("validation", "test", *["train"] * 8)


def write_dataset(conversations: Path, model_id: str, folder: Path) -> None:
    """Renders conversations by the model's chat template and writes a file per split."""
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    if not tokenizer.chat_template:
        raise SystemExit(f"{model_id} has no chat template; name a chat model")
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    with open(conversations, encoding="utf-8") as lines:
        for number, line in enumerate(filter(str.strip, lines)):
            text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
            rows[SPLITS[number % len(SPLITS)]].append(text)
    files = {
        folder / f"{split}.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)
        for split, texts in rows.items()
    }
    for file, written in files.items():
        if file.exists() and file.read_text(encoding="utf-8") != written:
            raise SystemExit(f"{file} holds other text, which is not replaced: move it away, or name another OUTPUT")
    folder.mkdir(parents=True, exist_ok=True)
    for file, written in files.items():
        file.write_text(written, encoding="utf-8")


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

    check_output(args.output, overwrite=True)
    folder = Path(f"{args.output.rstrip('/')}-data")
    write_dataset(args.conversations, args.model, folder)
    sizes = {name: getattr(args, name) for name in ("search_steps", "num_samples", "search_samples", "seq_len")}
    config = FFPConfig(sparsity=args.sparsity, dataset=str(folder), **sizes)
    pruner = FFPPruner.from_pretrained(args.model, config)
    result = pruner.prune()
    pruner.save_pretrained(args.output, overwrite=True)
    print(f"perplexity on conversations: {result.perplexity:.2f}")


if __name__ == "__main__":
    main()

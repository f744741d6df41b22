"""Fine-tunes a pruned model to recover quality: LoRA with peft and TRL's SFTTrainer, then a merged checkpoint.

pip install -e ".[recover]"
python examples/recover_with_lora.py PRUNED DATASET --output recovered
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.data import DataRequest, Windows, load_windows
from optimum_ffp.evaluation import Perplexity


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a pruned model.")
    parser.add_argument("dataset", help="Dataset as for `optimum-cli ffp prune`; trains on train, evaluates on test.")
    parser.add_argument("--output", default="recovered", help="Folder to write `adapter` and `merged` to.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512, help="Tokens per training window.")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--eval-samples", type=int, default=10, help="Number of test windows.")
    parser.add_argument("--eval-seq-len", type=int, default=2048, help="Tokens per test window.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: Windows, args: argparse.Namespace
) -> PeftModel:
    """Trains a LoRA adapter for all projections of the model.

    Args:
        model: The pruned model. Adapter layers are inserted in place.
        tokenizer: Tokenizer of the model.
        windows: Windows to train on.
        args: Arguments of the command line.

    Returns:
        The model with its adapter.
    """
    trainer = SFTTrainer(
        model,
        SFTConfig(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 10,
            max_length=None,
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=torch.cuda.is_available(),
            # Checkpoints of the Trainer contain pickles.
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        ),
        train_dataset=Dataset.from_dict({"input_ids": windows.tokens.tolist()}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"),
    )
    trainer.train()
    return trainer.model


def report(label: str, model: PreTrainedModel, windows: Windows) -> None:
    perplexity = Perplexity().compute(predictions=windows.tokens.tolist(), model=model)["perplexity"]
    print(f"{label}: perplexity {perplexity:.2f} on {len(windows)} windows of {windows.length}, {windows.split}")


def main() -> None:
    args = parse_args()
    output = Path(args.output)
    load = partial(FFPModelForCausalLM.from_pretrained, device_map="auto")
    model, tokenizer = load(args.model), AutoTokenizer.from_pretrained(args.model)
    training = DataRequest(args.seq_len, args.steps * args.batch_size, 1, 1, args.seed)
    evaluation = DataRequest(args.eval_seq_len, 1, 1, args.eval_samples, args.seed)
    training_windows = load_windows(args.dataset, None, tokenizer, model, training).calibration
    test_windows = load_windows(args.dataset, None, tokenizer, model, evaluation).test
    report("pruned", model, test_windows)

    train(model, tokenizer, training_windows, args).save_pretrained(output / "adapter")
    # Merge into the original pruned model, as a user of the adapter does.
    merged = PeftModel.from_pretrained(load(args.model), output / "adapter").merge_and_unload()
    merged.save_pretrained(output / "merged")
    tokenizer.save_pretrained(output / "merged")
    report("recovered and merged", load(output / "merged"), test_windows)


if __name__ == "__main__":
    main()

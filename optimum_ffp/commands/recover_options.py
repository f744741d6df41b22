"""The options of `optimum-cli ffp recover`, in the groups of `--help`."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import fields

from ..config.recovery import ADAPTER_RATE, PRESETS, WEIGHT_RATE, RecoveryConfig
from .arguments import (
    SEQ_LEN_DEFAULT,
    add_config_option,
    add_device_options,
    add_num_processes,
    add_option,
    add_output,
    add_overwrite,
    add_plan,
    add_report_to,
    add_text_column,
    add_training_hub_options,
)


DESCRIPTION = """Train a pruned model to predict what the dense model predicts. The result is a folder like that of the
pruned model."""
EXAMPLES = """examples:
  optimum-cli ffp recover -m out out-recovered --dataset my_text.jsonl --max-tokens 2M
  optimum-cli ffp recover -m out --dataset fineweb.jsonl:0.6,chats.jsonl:0.4 --lora 32 --teacher model.gguf
  accelerate launch --config_file fsdp2.yaml -m optimum.commands.optimum_cli ffp recover -m out --preset standard
"""
OPTIONS = {field.name: field for field in fields(RecoveryConfig)}


def parse_args_ffp_recover(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp recover`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp recover -m MODEL [OUT] [--dataset DATASET] [--max-tokens N] [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(required, "model", "-m", required=True, help="Pruned model to train: Hub id or folder.")

    common = parser.add_argument_group("Common options")
    add_output(common, "recovered", "MODEL-recovered")
    _add(
        common,
        "dataset",
        "Text to train on: c4, wikitext2, a Hub id, a .txt/.json/.jsonl/.parquet file, a folder with train, "
        "validation and test files, or self (text that the dense model writes); or a mix of them with the share of "
        "each, such as text.jsonl:0.5,chats.jsonl:0.5.",
        "the text that MODEL was pruned on, if it is a long one of the Hub, otherwise c4",
    )
    budgets = ", ".join(f"{name} {preset['max_tokens']:,}" for name, preset in PRESETS.items())
    _add(common, "preset", f"How much to train, in tokens: {budgets}.", choices=(*PRESETS,))
    _add(
        common,
        "max-tokens",
        "Number of tokens to train on, such as 400k, 2M or 1B.",
        "the preset's",
        type=str,
        metavar="TOKENS",
    )
    add_option(
        common,
        "teacher",
        metavar="MODEL",
        help="The dense model: Hub id, folder or .gguf file. Default: the one that MODEL was pruned from, on the Hub.",
    )
    add_option(common, "push-to-hub", action="store_true", help="Upload the result to the Hub.")

    output = parser.add_argument_group("Output")
    add_overwrite(output)
    add_option(
        output,
        "resume",
        action="store_true",
        help="Resume this command after it was interrupted, from its last checkpoint.",
    )
    add_plan(output)
    add_report_to(output, "the training")

    data = parser.add_argument_group("Data")
    _add(
        data,
        "eval-dataset",
        "Text to report perplexity on, or several separated by commas. Other text than that of the training shows "
        "what else was recovered.",
        "the test split of --dataset, of each text of a mix but self",
        metavar="DATASET",
    )
    add_text_column(data)
    _add(
        data,
        "seq-len",
        "Tokens per window; all text is packed into windows.",
        f"{SEQ_LEN_DEFAULT}; with few tokens or many processes down to 512, so that a step has no more than its share",
    )
    _add(
        data,
        "eval-samples",
        "Number of test windows of each text, from the test split.",
        "all of a test split, the first 100 of a text without one",
    )

    training = parser.add_argument_group("Training")
    add_option(
        training,
        "config",
        metavar="FILE",
        help="JSON file of options, such as the ffp_config.json of a recovered model, whose last recovery it takes. "
        "Options of the command line override it; --preset replaces max_tokens and batch_tokens of the file too. "
        "Default: none.",
    )
    _add(
        training,
        "learning-rate",
        "Largest learning rate of AdamW.",
        f"{WEIGHT_RATE:g}, or {ADAPTER_RATE:g} with --lora",
    )
    _add(
        training,
        "batch-tokens",
        "Tokens per step, of all processes together.",
        "the preset's, but at most 1/200 of --max-tokens",
        type=str,
        metavar="TOKENS",
    )
    _add(training, "seed", "Random seed.")

    adapters = parser.add_argument_group("Adapters (needs peft: pip install peft)")
    add_option(
        adapters,
        "lora",
        type=int,
        nargs="?",
        const=32,
        help="Train LoRA adapters of this rank (32 without a number), which are merged, in place of all weights. "
        "Default: all weights.",
    )

    resources = parser.add_argument_group("Resources")
    add_device_options(resources, "the dense model, and not of the result, which has that of the pruned one")
    add_num_processes(resources)
    _add(resources, "batch-size", "Windows per forward pass of a process.")
    _add(
        resources,
        "bf16",
        "Whether to compute in bfloat16, with weights in float32.",
        "if the hardware is faster at it",
    )
    _add(resources, "gradient-checkpointing", "Whether to run layers again in the backward pass, to save memory.")

    hub = parser.add_argument_group("The Hub")
    add_training_hub_options(hub)


def _add(group: ArgumentParser, name: str, help: str, default: str | None = None, **options) -> None:
    add_config_option(group, name, help, default, OPTIONS, **options)

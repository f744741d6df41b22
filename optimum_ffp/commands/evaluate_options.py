"""The options of `optimum-cli ffp evaluate`, in the groups of `--help`."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from ..config.fields import CHOICES
from .arguments import (
    SEQ_LEN_DEFAULT,
    add_device_options,
    add_hub_options,
    add_option,
    add_text_column,
    add_trust_remote_code,
)


EXAMPLES = """examples:
  optimum-cli ffp evaluate -m SmolLM2-135M-ffp-20 --baseline HuggingFaceTB/SmolLM2-135M-Instruct
  optimum-cli ffp evaluate -m out-recovered --baseline Qwen/Qwen3-0.6B out
  optimum-cli ffp evaluate -m out --tasks boolq piqa arc_easy --limit 200 --json out.json
  optimum-cli ffp evaluate -m model.gguf --dataset my_text.txt --tasks-path my_tasks --no-speed
"""


def parse_args_ffp_evaluate(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp evaluate`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp evaluate -m MODEL [options]"
    parser.description = (
        "Measure perplexity, tasks, size and speed of a model, dense or pruned, beside a baseline, and the divergence "
        "of its predictions from the baseline's."
    )
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    add_option(
        required,
        "model",
        "-m",
        required=True,
        help="Hub id or folder of a model, dense or pruned, or .gguf file of a dense one.",
    )

    output = parser.add_argument_group("Comparison and output")
    add_option(
        output,
        "baseline",
        nargs="+",
        default=(),
        metavar="MODEL",
        help="Model to compare with, such as the dense one, from which the divergence is measured: Hub id, folder or "
        ".gguf file. More of them are shown beside it. Default: none.",
    )
    add_option(output, "json", metavar="FILE", help="Also write all figures to this JSON file. Default: none.")

    text = parser.add_argument_group("Perplexity")
    add_option(
        text,
        "dataset",
        default="wikitext2",
        help="Text to measure perplexity on: wikitext2, c4, a Hub id, a .txt/.json/.jsonl/.parquet file, or a folder "
        "with train, validation and test files; or several, separated by commas, each reported by itself.",
    )
    add_option(
        text,
        "split",
        help="Split of a dataset that has train and test: train, validation or test. Of a single text all, or with "
        "test only the part that a prune reports on. Default: test, and all of a file that none of the models was "
        "calibrated or trained on.",
    )
    add_text_column(text)
    add_option(
        text,
        "eval-samples",
        type=int,
        help="Number of windows of each text, from its start. Default: all, or the first 100 of the test part of a "
        "text without a test split.",
    )
    add_option(
        text,
        "seq-len",
        type=int,
        help=f"Tokens per window. Default: as the pruned model was measured, otherwise {SEQ_LEN_DEFAULT}.",
    )
    add_option(
        text,
        "start-token",
        choices=CHOICES["start_token"],
        help="Whether windows begin with a start token: auto (if the tokenizer adds one) or never. Default: as the "
        "pruned model was measured, otherwise auto.",
    )
    add_option(text, "no-perplexity", action="store_true", help="Don't measure perplexity and divergence.")

    tasks = parser.add_argument_group("Tasks (needs lm-eval: pip install lm-eval)")
    add_option(
        tasks,
        "tasks",
        nargs="+",
        metavar="TASK",
        help="Tasks to score: names of lm-eval tasks, with * as a wildcard, or .yaml files. Default: none, or all "
        "tasks in --tasks-path.",
    )
    add_option(
        tasks,
        "tasks-path",
        metavar="DIR",
        help="Folder of lm-eval task files (.yaml), whose data may be local. Functions that they name are executed. "
        "Default: none.",
    )
    add_option(tasks, "limit", type=float, help="Samples per task, or the fraction of them if below 1. Default: all.")
    add_option(tasks, "num-fewshot", type=int, help="Solved examples before each question. Default: the task's own.")

    speed = parser.add_argument_group("Speed")
    add_option(
        speed, "no-speed", action="store_true", help="Don't measure speed. Only one model is then in memory at a time."
    )
    add_option(speed, "prompt-tokens", type=int, default=512, help="Tokens in the prompt.")
    add_option(speed, "new-tokens", type=int, default=32, help="Tokens to generate.")
    add_option(speed, "repeats", type=int, default=5, help="Measurements per model; the median is reported.")

    load = parser.add_argument_group("Loading and running")
    add_option(load, "batch-size", type=int, default=1, help="Windows, task requests or prompts per forward pass.")
    add_device_options(load)
    add_hub_options(load)
    add_trust_remote_code(load)
    add_option(
        load, "baseline-revision", help="Branch, tag or commit of the baseline on the Hub. Default: the main branch."
    )

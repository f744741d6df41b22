"""`optimum-cli ffp evaluate`."""

from argparse import ArgumentParser, Namespace

from .arguments import add_device_options, add_hub_options, add_json, add_option, describe
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp evaluate -m SmolLM2-135M-ffp-20 --baseline HuggingFaceTB/SmolLM2-135M-Instruct
  optimum-cli ffp evaluate -m out-recovered --baseline Qwen/Qwen3-0.6B out
  optimum-cli ffp evaluate -m out --tasks boolq piqa arc_easy --limit 200 --json out.json
  optimum-cli ffp evaluate -m model.gguf --dataset my_texts --no-speed
"""
# Options that `evaluate` has too.
OPTIONS = ("tasks", "eval_samples", "seq_len", "text_column", "limit", "num_fewshot", "prompt_tokens", "new_tokens")
OPTIONS += ("batch_size", "device", "dtype", "revision", "trust_remote_code")


class FFPEvaluateCommand(Command):
    """Measure perplexity, zero-shot tasks, size and speed of a dense or pruned model, and compare with baselines."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        description = (
            "Measure perplexity, zero-shot tasks, size and speed of a dense or pruned model, and compare it with\n"
            "baselines, including the divergence of its predictions from the first baseline's."
        )
        describe(parser, "optimum-cli ffp evaluate -m MODEL [options]", description, EXAMPLES)
        required = parser.add_argument_group("Required arguments")
        add_option(
            required,
            "model",
            "-m",
            required=True,
            help="Model to evaluate: Hub id or folder (dense or pruned), or .gguf file (dense).",
        )

        output = parser.add_argument_group("Comparison and output")
        add_option(
            output,
            "baseline",
            nargs="+",
            default=(),
            metavar="MODEL",
            help="Models to compare with, such as the dense one: Hub id, ID@REVISION, folder or .gguf file. The "
            "divergence is measured from the first one. Default: none.",
        )
        add_json(output)

        text = parser.add_argument_group("Perplexity")
        add_option(
            text,
            "dataset",
            default="wikitext2",
            help="Text to measure perplexity on: wikitext2, c4, a Hub id, a file, or a folder with train, validation "
            "and test files. Several texts, separated by commas, are reported separately. Only the test split is "
            "read; for a text without splits, the part that a prune reserves for testing.",
        )
        add_option(
            text,
            "text-column",
            metavar="NAME",
            help="Dataset column with texts or conversations. Default: as in a prune.",
        )
        add_option(
            text,
            "eval-samples",
            type=int,
            help="Number of windows per text, from its beginning. Default: all, or 100 for a text without splits.",
        )
        add_option(
            text,
            "seq-len",
            type=int,
            help="Tokens per window. Default: the pruned model's recorded value, otherwise the model's maximum, up to "
            "2048.",
        )
        add_option(text, "no-perplexity", action="store_true", help="Don't measure perplexity and divergence.")

        tasks = parser.add_argument_group("Tasks (needs lm-eval: pip install lm-eval)")
        add_option(
            tasks,
            "tasks",
            nargs="+",
            default=(),
            metavar="TASK",
            help="lm-eval tasks to run: names, with * as a wildcard, or .yaml files. Default: none.",
        )
        add_option(
            tasks, "limit", type=float, help="Samples per task, or a fraction of them if below 1. Default: all."
        )
        add_option(tasks, "num-fewshot", type=int, help="Examples before each question. Default: the task's setting.")

        speed = parser.add_argument_group("Speed")
        add_option(
            speed,
            "no-speed",
            action="store_true",
            help="Don't measure speed. Only one model is then in memory at a time.",
        )
        add_option(speed, "prompt-tokens", type=int, default=512, help="Tokens in the prompt.")
        add_option(speed, "new-tokens", type=int, default=32, help="Tokens to generate.")

        load = parser.add_argument_group("Loading and running")
        add_option(load, "batch-size", type=int, default=1, help="Windows, task requests or prompts per forward pass.")
        add_device_options(load)
        add_hub_options(load)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Run `evaluate`, print the results, and optionally write them as JSON."""
        from ..evaluation import evaluate
        from ..utils.profiling import StageMeter
        from .records import check_json, evaluation_records, write_records

        check_json(args.json)
        meter = StageMeter()
        with meter.stage("evaluation"):
            figures = evaluate(
                args.model,
                args.baseline,
                dataset=None if args.no_perplexity else args.dataset,
                speed=not args.no_speed,
                **{name: getattr(args, name) for name in OPTIONS},
            )
        print(figures)
        write_records(args.json, evaluation_records(figures, meter))

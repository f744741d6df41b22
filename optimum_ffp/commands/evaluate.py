"""`optimum-cli ffp evaluate`."""

from argparse import ArgumentParser, Namespace

from ..config import EvaluationConfig
from .arguments import add_device_options, add_hub_options, add_json, add_option, describe, load_options
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp evaluate -m SmolLM2-135M-ffp-20 --baseline HuggingFaceTB/SmolLM2-135M-Instruct
  optimum-cli ffp evaluate -m out-recovered --baseline Qwen/Qwen3-0.6B out
  optimum-cli ffp evaluate -m out --tasks boolq piqa arc_easy --limit 200 --json out.json
  optimum-cli ffp evaluate -m model.gguf --dataset my_texts --no-speed
"""


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
        groups = EvaluationConfig.add_arguments(parser)
        add_device_options(groups["Loading and running"])
        add_hub_options(groups["Loading and running"])

    @staticmethod
    def execute(args: Namespace) -> None:
        """Run `evaluate`, print the results, and optionally write them as JSON."""
        config = EvaluationConfig.from_args(args)

        from ..evaluation import evaluate
        from ..utils.profiling import StageMeter
        from .records import check_json, evaluation_records, write_records

        check_json(args.json)
        meter = StageMeter()
        with meter.stage("evaluation"):
            figures = evaluate(args.model, args.baseline, **config.to_dict(), **load_options(args))
        print(figures)
        write_records(args.json, evaluation_records(figures, meter))

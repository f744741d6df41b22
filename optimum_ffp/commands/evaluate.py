"""`optimum-cli ffp evaluate`."""

from argparse import ArgumentParser, Namespace

from ..config import EvaluationConfig
from .arguments import add_shared, describe, load_options
from .launching import Command


DESCRIPTION = """Measure perplexity, zero-shot tasks, size and speed of a dense or pruned model, and compare it with
baselines, including the divergence of its predictions from the first baseline's."""
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
        describe(parser, "optimum-cli ffp evaluate -m MODEL [options]", DESCRIPTION, EXAMPLES)
        group = parser.add_argument_group("Models and output")
        model = "Model to evaluate: Hub id or folder (dense or pruned), or .gguf file (dense)."
        group.add_argument("-m", "--model", required=True, help=model)
        group.add_argument(
            "--baseline",
            nargs="+",
            default=(),
            metavar="MODEL",
            help="Models to compare with, such as the dense one: Hub id, ID@REVISION, folder or .gguf file. The "
            "divergence is measured from the first one. Default: none.",
        )
        add_shared(group, "--json")
        groups = EvaluationConfig.add_arguments(parser)
        add_shared(groups["Loading and running"], "--device", "--dtype", "--revision", "--trust-remote-code")

    @staticmethod
    def execute(args: Namespace) -> None:
        """Evaluate, print the results, and write them with `--json`."""
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

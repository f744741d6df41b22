"""`optimum-cli ffp`. Heavy packages are only imported when a command runs."""

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from ..version import __version__
from .evaluate import FFPEvaluateCommand
from .export import FFPExportCommand
from .prune import FFPPruneCommand
from .push import FFPPushCommand
from .recover import FFPRecoverCommand


class FFPCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp`."""

    COMMAND = CommandInfo(name="ffp", help="Structured pruning of causal language models.")
    SUBCOMMANDS = (
        CommandInfo(
            name="prune",
            help="Remove attention heads and FFN channels of a causal language model.",
            subcommand_class=FFPPruneCommand,
        ),
        CommandInfo(
            name="recover",
            help="Train a pruned model to reproduce the predictions of the dense model.",
            subcommand_class=FFPRecoverCommand,
        ),
        CommandInfo(
            name="evaluate",
            help="Measure perplexity, tasks, size and speed of a dense or pruned model and a baseline.",
            subcommand_class=FFPEvaluateCommand,
        ),
        CommandInfo(
            name="export",
            help="Export a dense or pruned model to GGUF for llama.cpp.",
            subcommand_class=FFPExportCommand,
        ),
        CommandInfo(
            name="push",
            help="Upload a pruned model's folder to the Hub.",
            subcommand_class=FFPPushCommand,
        ),
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add `--version`."""
        parser.add_argument("--version", action="version", version=f"optimum-ffp {__version__}")

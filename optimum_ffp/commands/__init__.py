"""`optimum-cli ffp`. Heavy packages are only imported when a command runs."""

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from ..version import __version__
from .evaluate import FFPEvaluateCommand
from .export import FFPExportCommand
from .prune import FFPPruneCommand
from .push import FFPPushCommand
from .quantize import FFPQuantizeCommand
from .recover import FFPRecoverCommand


COMMANDS = {
    "prune": FFPPruneCommand,
    "recover": FFPRecoverCommand,
    "evaluate": FFPEvaluateCommand,
    "quantize": FFPQuantizeCommand,
    "export": FFPExportCommand,
    "push": FFPPushCommand,
}


class FFPCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp`."""

    COMMAND = CommandInfo(name="ffp", help="Structured pruning of causal language models.")
    SUBCOMMANDS = tuple(
        CommandInfo(name=name, help=command.__doc__, subcommand_class=command) for name, command in COMMANDS.items()
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add `--version`."""
        parser.add_argument("--version", action="version", version=f"optimum-ffp {__version__}")

"""`optimum-cli ffp`: argparse only; what is heavy is imported when a command runs."""

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .prune import FFPPruneCommand


class FFPCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="ffp", help="Make causal LMs physically smaller by FastForward Pruning.")
    SUBCOMMANDS = (
        CommandInfo(
            name="prune",
            help="Prune a causal LM: search, calibrate, slice, save.",
            subcommand_class=FFPPruneCommand,
        ),
    )

"""`optimum-cli ffp push`."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from optimum.commands.base import BaseOptimumCLICommand

from .arguments import add_option
from .errors import one_line_endings


EXAMPLES = """examples:
  optimum-cli ffp push SmolLM2-135M-ffp-20 SmolLM2-135M-ffp-20
  optimum-cli ffp push out my-org/Qwen3-8B-ffp-20 --private
"""


def parse_args_ffp_push(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp push`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.description = "Upload the folder of a pruned model to the Hub, in one commit."
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    required.add_argument("folder", help="Folder of a pruned model, as written by `ffp prune`. It is not changed.")
    required.add_argument(
        "repository", help="Repository to upload to, NAME or OWNER/NAME; created if it does not exist."
    )

    optional = parser.add_argument_group("Optional arguments")
    add_option(
        optional, "private", action="store_true", default=None, help="Make the repository private if it is created."
    )
    add_option(optional, "token", help="Access token for the Hub. Default: the one stored by `hf auth login`.")


class FFPPushCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp push`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_push(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings():
            push(self.args)


def push(args: Namespace) -> None:
    """Uploads the folder of a pruned model in one commit."""
    from ..checkpoint.saving import check_saved
    from ..hub.upload import push_folder
    from ..planning.preflight import check_repositories

    folder = check_saved(args.folder)
    check_repositories([args.repository], args.token)
    print(f"uploaded: {push_folder(folder, args.repository, args.private, args.token)}")

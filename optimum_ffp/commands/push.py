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
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    required.add_argument("folder", help="Folder of a pruned model, as `ffp prune` has written it. It stays as it is.")
    required.add_argument("repository", help="Repository to upload to, NAME or OWNER/NAME; made if there is none.")

    optional = parser.add_argument_group("Optional arguments")
    add_option(optional, "private", action="store_true", default=None, help="Make a new repository private.")
    add_option(optional, "token", help="Token of the Hub. Default: the one that `hf auth login` has stored.")


class FFPPushCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp push`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_push(parser)

    def run(self) -> None:
        """Does what was asked for, or ends in one line with exit code 2."""
        with one_line_endings():
            push(self.args)


def push(args: Namespace) -> None:
    """Uploads a folder, if it is a pruned model, in one commit."""
    from ..checkpoint.saving import check_saved
    from ..hub.upload import push_folder
    from ..planning.preflight import check_repositories

    folder = check_saved(args.folder)
    check_repositories([args.repository], args.token)
    print(f"uploaded: {push_folder(folder, args.repository, args.private, args.token)}")

"""`optimum-cli ffp push`."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from optimum.commands.base import BaseOptimumCLICommand

from ..config.fields import Condition
from .arguments import add_option, add_private, add_token, check_read, given_options
from .errors import one_line_endings


READ_WHEN = {"private": Condition("without --create-pr", lambda args: not args.create_pr)}
EXAMPLES = """examples:
  optimum-cli ffp push SmolLM2-135M-ffp-20 SmolLM2-135M-ffp-20
  optimum-cli ffp push out my-org/Qwen3-8B-ffp-20 --private
  optimum-cli ffp push out their-org/Qwen3-8B-ffp-20 --create-pr
"""


def parse_args_ffp_push(parser: ArgumentParser) -> None:
    """Adds the options of `optimum-cli ffp push`."""
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.usage = "optimum-cli ffp push FOLDER REPOSITORY [options]"
    parser.description = "Upload the folder of a pruned model to the Hub, in one commit."
    parser.epilog = EXAMPLES
    required = parser.add_argument_group("Required arguments")
    required.add_argument(
        "folder", metavar="FOLDER", help="Folder of a pruned model, as written by `ffp prune`. It is not changed."
    )
    required.add_argument(
        "repository",
        metavar="REPOSITORY",
        help="Repository to upload to, NAME or OWNER/NAME; created if it does not exist.",
    )

    optional = parser.add_argument_group("Optional arguments")
    add_private(optional)
    add_option(
        optional,
        "revision",
        metavar="BRANCH",
        help="Branch to commit to, created if it does not exist, or refs/pr/N for an open pull request; with "
        "--create-pr the branch that it is for. The card's lines load the main branch. Default: main.",
    )
    add_option(
        optional,
        "commit-message",
        metavar="TEXT",
        help="Message of the commit, and title of a pull request. Default: one that names optimum-ffp.",
    )
    add_option(
        optional,
        "create-pr",
        action="store_true",
        help="Open a pull request with the commit, in a repository that exists.",
    )
    add_token(optional)


class FFPPushCommand(BaseOptimumCLICommand):
    """`optimum-cli ffp push`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the options."""
        return parse_args_ffp_push(parser)

    def run(self) -> None:
        """Runs the command; an `FFPError` ends it with one line and exit code 2."""
        with one_line_endings():
            check_read(given_options(self.parser, self.args), READ_WHEN, self.args)
            push(self.args)


def push(args: Namespace) -> None:
    """Uploads the folder of a pruned model in one commit."""
    from ..checkpoint.saving import check_saved
    from ..hub.upload import push_folder
    from ..planning.preflight import check_repositories

    folder = check_saved(args.folder)
    owned = not args.create_pr and not (args.revision or "").startswith("refs/pr/")
    check_repositories([args.repository], args.token, owned)
    options = {name: getattr(args, name) for name in ("private", "token", "revision", "commit_message", "create_pr")}
    print(f"uploaded: {push_folder(folder, args.repository, **options)}")

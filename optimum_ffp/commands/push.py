"""`optimum-cli ffp push`."""

from argparse import ArgumentParser, Namespace

from .arguments import add_option, add_private, describe
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp push SmolLM2-135M-ffp-20 SmolLM2-135M-ffp-20
  optimum-cli ffp push out my-org/Qwen3-8B-ffp-20 --private
  optimum-cli ffp push out their-org/Qwen3-8B-ffp-20 --create-pr
"""


class FFPPushCommand(Command):
    """Upload a pruned model's folder to the Hub."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        description = "Upload the folder of a pruned model to the Hub, in one commit."
        describe(parser, "optimum-cli ffp push FOLDER REPOSITORY [options]", description, EXAMPLES)
        group = parser.add_argument_group("Options")
        group.add_argument(
            "folder", metavar="FOLDER", help="Folder of a pruned model, as written by `ffp prune`. It is not modified."
        )
        group.add_argument(
            "repository",
            metavar="REPOSITORY",
            help="Repository to upload to, NAME or OWNER/NAME; created if it does not exist.",
        )
        add_private(group)
        add_option(
            group,
            "revision",
            metavar="BRANCH",
            help="Branch to commit to (created if it doesn't exist), or refs/pr/N for an open pull request. With "
            "--create-pr, the target branch. Commands in the card load the main branch. Default: main.",
        )
        add_option(group, "commit-message", metavar="TEXT", help="Commit message, and title of the pull request.")
        add_option(
            group,
            "create-pr",
            action="store_true",
            help="Open a pull request in an existing repository instead of committing to it.",
        )

    @staticmethod
    def execute(args: Namespace) -> None:
        """Upload the folder of a pruned model in one commit."""
        from ..checkpoint.pushing import check_saved, push_checkpoint
        from ..planning.preflight import check_repositories

        folder = check_saved(args.folder)
        owned = not args.create_pr and not (args.revision or "").startswith("refs/pr/")
        check_repositories([args.repository], owned)
        options = {name: getattr(args, name) for name in ("private", "revision", "commit_message", "create_pr")}
        print(f"uploaded: {push_checkpoint(folder, args.repository, **options)}")

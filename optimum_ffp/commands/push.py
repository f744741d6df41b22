"""`optimum-cli ffp push`."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ..config.fields import Config, option
from .arguments import add_shared, describe
from .launching import Command


EXAMPLES = """examples:
  optimum-cli ffp push SmolLM2-135M-ffp-20 SmolLM2-135M-ffp-20
  optimum-cli ffp push out my-org/Qwen3-8B-ffp-20 --private
  optimum-cli ffp push out their-org/Qwen3-8B-ffp-20 --create-pr
"""


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Options of `ffp push`."""

    revision: str | None = option(
        None,
        "Branch to commit to (created if it doesn't exist), or refs/pr/N for an open pull request. With --create-pr, "
        "the target branch. Commands in the card load the main branch.",
        "Commit",
        default_text="the main branch",
    )
    commit_message: str | None = option(
        None,
        "Commit message, and title of the pull request.",
        "Commit",
        default_text="one that names optimum-ffp",
    )
    create_pr: bool = option(
        False, "Whether to open a pull request in an existing repository instead of committing to it.", "Commit"
    )


class FFPPushCommand(Command):
    """Upload the folder of a pruned model to the Hub, in one commit."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        describe(parser, "optimum-cli ffp push FOLDER REPOSITORY [options]", FFPPushCommand.__doc__, EXAMPLES)
        group = parser.add_argument_group("Folder and repository")
        group.add_argument("folder", metavar="FOLDER", help="Folder written by `ffp prune`. It is not modified.")
        group.add_argument(
            "repository", metavar="REPOSITORY", help="NAME or OWNER/NAME on the Hub; created if it doesn't exist."
        )
        add_shared(group, "--private")
        Options.add_arguments(parser)

    @staticmethod
    def execute(args: Namespace) -> None:
        """Upload the folder of a pruned model in one commit."""
        config = Options.from_args(args)

        from ..checkpoint.pushing import check_saved, push_checkpoint
        from ..planning.preflight import check_repositories

        folder = check_saved(args.folder)
        owned = not config.create_pr and not (config.revision or "").startswith("refs/pr/")
        check_repositories([args.repository], owned)
        url = push_checkpoint(folder, args.repository, private=args.private, **config.to_dict())
        print(f"uploaded: {url}")

"""Upload of checkpoints to the Hub, with a card for the repository."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FFPError
from ..hub.upload import check_push, push_folder
from ..utils import processes
from ..utils.folders import expand
from .card import render_card
from .saving import load_record


def push_checkpoint(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Upload a saved checkpoint in one commit, with the card rendered for the repository. The folder is not changed.

    Args:
        folder: The checkpoint's folder.
        repo_id: `name` or `owner/name`; created if it doesn't exist, unless a pull request is opened.
        options: `private`, `token`, `revision`, `commit_message`, `create_pr`, as for `push_folder`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        FFPError: If the folder is not a checkpoint, or the upload fails.
    """
    record = load_record(expand(folder))
    if not record:
        raise FFPError(f"{folder} contains no pruned model; nothing was uploaded")
    return push_folder(expand(folder), repo_id, partial(render_card, record), **options)


def push_result(save: Callable[[Path], Any], repo_id: str, **options: Any) -> str:
    """Save a result to a temporary folder and upload it as `push_checkpoint` does, in the main process."""

    def push() -> str:
        check_push(repo_id, options.get("token"))
        parent = Path(tempfile.mkdtemp(prefix="optimum-ffp-"))
        folder = parent / repo_id.rpartition("/")[2]
        save(folder)
        url = push_checkpoint(folder, repo_id, **options)
        # If the upload fails, this may be the only copy of the result.
        shutil.rmtree(parent)
        return url

    return processes.on_main(push)

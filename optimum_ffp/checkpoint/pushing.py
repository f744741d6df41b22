"""Upload of checkpoints to the Hub, with a card for the repository."""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FFPError
from ..hub.upload import check_push, push_folder
from ..hub.validate_checkpoint import check_checkpoint
from ..utils import processes
from ..utils.folders import expand, read_record
from .card import render_card


def check_saved(directory: str | os.PathLike) -> Path:
    """Check that a folder is a checkpoint of a pruned model, and return its path.

    Raises:
        FFPError: If the folder does not exist, is not such a checkpoint, or its weights are missing.
    """
    path = expand(directory)
    if not path.is_dir():
        raise FFPError(f"there is no folder {directory}; choose one written by `ffp prune`")
    if not read_record(path) or not any(path.glob("model*.safetensors")):
        raise FFPError(f"{directory} has no pruned model with its weights; choose a folder written by `ffp prune`")
    check_checkpoint(path)
    return path


def push_checkpoint(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Upload a saved checkpoint in one commit, with the card rendered for the repository. The folder is not changed.

    Args:
        folder: The checkpoint's folder.
        repo_id: `name` or `owner/name`; created if it doesn't exist, unless a pull request is opened.
        options: `private`, `token`, `revision`, `commit_message`, `create_pr`, as for `push_folder`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        FFPError: As `check_saved`, or if the upload fails.
    """
    path = check_saved(folder)
    return push_folder(path, repo_id, partial(render_card, read_record(path)), **options)


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

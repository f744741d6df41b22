"""Upload of checkpoints to the Hub, with a card for the repository."""

import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

from ..errors import FFPError, convert_errors
from ..hub.record import require_record
from ..hub.upload import check_push, describe_failure
from ..hub.validate_checkpoint import check_checkpoint
from ..utils import processes
from ..utils.folders import abbreviate, check_links, expand, list_files
from ..utils.record import RECORD, Record
from .card import CARD, render_card


logger = logging.getLogger(__name__)
# Documents that users may have added to a checkpoint.
USER_DOCUMENTS = re.compile(r"(license|notice)[^/]*|[^/]+\.md", re.IGNORECASE)
MESSAGE = "Upload a model pruned by optimum-ffp"


def check_saved(directory: str | os.PathLike) -> Path:
    """Return the path of a folder. Raises `FFPError` if it isn't a checkpoint of a pruned model with its weights."""
    path = expand(directory)
    if not path.is_dir():
        raise FFPError(f"there is no folder {directory}; choose one written by `ffp prune`")
    if not Record.read(path) or not any(path.glob("model*.safetensors")):
        raise FFPError(f"{directory} has no pruned model with its weights; choose a folder written by `ffp prune`")
    check_checkpoint(path)
    return path


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a saved checkpoint in one commit, with the card rendered for the repository.

    Files of a previous checkpoint in the repository are deleted.

    Args:
        folder: The checkpoint's folder. It is not changed.
        repo_id: `name` or `owner/name`; created if it doesn't exist, unless a pull request is opened.
        private: Whether a new repository is private.
        token: Access token of the Hub; the one stored by `hf auth login` if `None`.
        revision: Branch to commit to, created from the main branch if it doesn't exist, or `refs/pr/N` for an open
            pull request; with `create_pr` the existing branch that it is for. The main branch if `None`.
        commit_message: First line of the commit's message, and the title of a pull request.
        create_pr: Whether to open a pull request with the commit.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        FFPError: As `check_saved`, or if a file is a link to one outside the folder, the Hub can't be reached or
            refuses the upload, or `private` is set and the repository exists and is public.
    """
    path = check_saved(folder)
    check_push(repo_id, token)
    record, api = require_record(path), HfApi(token=token)
    files = _uploaded(path, record)
    command = shlex.join(["optimum-cli", "ffp", "push", str(path), repo_id])
    # The HTTP library, the storage client and the thread pool raise different exceptions.
    with convert_errors(
        lambda error: (
            f"the upload to {repo_id} failed: {describe_failure(error, token)}. The checkpoint is complete "
            f"in {path}; retry with the same options: {command}"
        )
    ):
        repo_id = _find_repository(api, repo_id, private, revision, create_pr)
        contents = files | {CARD: render_card(record, repo_id).encode()}
        stale = _existing_files(api, repo_id, revision) - contents.keys()
        # upload_folder may split an upload into several commits.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *map(CommitOperationDelete, sorted(stale)),
            ],
            commit_message=commit_message or MESSAGE,
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.pr_url or commit.commit_url)


def _uploaded(folder: Path, record: Record) -> dict[str, Path | bytes]:
    # Silently skip files of git and download caches.
    names = {*filter_repo_objects(list_files(folder), ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
    uploaded = {name for name in names if name in record.files or USER_DOCUMENTS.fullmatch(name)}
    if skipped := names - uploaded:
        logger.warning("not part of the checkpoint, and not uploaded: %s", abbreviate(skipped))
    check_links(folder, uploaded)
    return {name: folder / name for name in sorted(uploaded)}


def _find_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None, create_pr: bool) -> str:
    """Create the repository and the branch unless they exist, and return the repository's full name."""
    if create_pr:
        return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise FFPError(f"{repo_id} exists and is public; choose another repository, or leave out private")
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _existing_files(api: HfApi, repo_id: str, revision: str | None) -> set[str]:
    names = api.list_repo_files(repo_id, revision=revision)
    record = Record.read(api.hf_hub_download(repo_id, RECORD, revision=revision)) if RECORD in names else None
    return {*names}.intersection(record.files) if record else set()


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

"""Upload of a checkpoint to the Hub in a single commit, with one-line errors."""

import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from ..errors import FFPError, convert_errors, one_line
from ..utils.folders import RECORD, abbreviate, check_links, list_files, read_record, recorded_files


logger = logging.getLogger(__name__)
CARD = "README.md"
# Documents that users may have added to a checkpoint.
USER_DOCUMENTS = re.compile(r"(license|notice)[^/]*|[^/]+\.md", re.IGNORECASE)
MESSAGE = "Upload a model pruned by optimum-ffp"
ADVICE = {
    401: "the Hub rejects the token: log in with `hf auth login`, or set another one in HF_TOKEN (token=...)",
    403: "the token lacks permission: use one with write access, or a repository of your own",
    404: "the repository, its branch or its owner doesn't exist, or the token has no access: check the names",
    409: "another commit changed the repository in the meantime: try again",
    429: "the Hub's rate limit was reached: try again later",
}


def check_push(repo_id: str, token: str | None = None) -> None:
    """Check offline that a repository name is valid and that there is a token.

    Raises:
        FFPError: If the name is not a valid repository name, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FFPError(f"{repo_id!r} is not a valid repository name: {one_line(error)}") from None
    if not (token or get_token()):
        raise FFPError("an upload needs a Hub token: log in with `hf auth login`, or set HF_TOKEN (token=...)")


def push_folder(
    folder: Path,
    repo_id: str,
    card: Callable[[str], str],
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the files of a checkpoint in one commit, deleting files of a previous checkpoint.

    Args:
        folder: The checkpoint's folder. It is not changed.
        repo_id: `name` or `owner/name`; created if it doesn't exist, unless a pull request is opened.
        card: Function that returns the card for a repository name.
        private: Whether a new repository is private.
        token: Access token of the Hub; the one stored by `hf auth login` if `None`.
        revision: Branch to commit to, created from the main branch if it doesn't exist, or `refs/pr/N` for an open
            pull request; with `create_pr` the existing branch that it is for. The main branch if `None`.
        commit_message: First line of the commit's message, and the title of a pull request.
        create_pr: Whether to open a pull request with the commit.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        FFPError: If a file is a link to one outside the folder, the Hub can't be reached or refuses the upload, or
            `private` is set and the repository exists and is public.
    """
    check_push(repo_id, token)
    files = _uploaded(folder)
    api = HfApi(token=token)
    command = shlex.join(["optimum-cli", "ffp", "push", str(folder), repo_id])
    # The HTTP library, the storage client and the thread pool raise different exceptions.
    with convert_errors(
        lambda error: (
            f"the upload to {repo_id} failed: {describe_failure(error, token)}. The checkpoint is complete "
            f"in {folder}; retry with the same options: {command}"
        )
    ):
        if create_pr:
            repo_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        else:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise FFPError(f"{repo_id} exists and is public; choose another repository, or leave out private")
            if revision and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents = files | {CARD: card(repo_id).encode()}
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


def _uploaded(folder: Path) -> dict[str, Path | bytes]:
    # Silently skip files of git and download caches.
    names = {*filter_repo_objects(list_files(folder), ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
    recorded = recorded_files(read_record(folder))
    uploaded = {name for name in names if name in recorded or USER_DOCUMENTS.fullmatch(name)}
    if skipped := names - uploaded:
        logger.warning("not part of the checkpoint, and not uploaded: %s", abbreviate(skipped))
    check_links(folder, uploaded)
    return {name: folder / name for name in sorted(uploaded)}


def _existing_files(api: HfApi, repo_id: str, revision: str | None) -> set[str]:
    names, record = api.list_repo_files(repo_id, revision=revision), {}
    if RECORD in names:
        record = read_record(Path(api.hf_hub_download(repo_id, RECORD, revision=revision)).parent)
    return recorded_files(record).intersection(names)


def describe_failure(error: BaseException, token: str | None = None) -> str:
    """Format a Hub error with advice, or another error, in one line without tokens."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            status, reason = response.status_code, getattr(cause, "server_message", None) or response.reason_phrase
            advice = "the Hub has a server error: try again later" if status >= 500 else ADVICE.get(status, "")
            return f"{status} {one_line(reason, token)}; {advice}".removesuffix("; ")
        cause = cause.__cause__
    return one_line(error, token)

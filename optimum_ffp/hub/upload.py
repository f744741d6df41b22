"""Upload of a checkpoint to the Hub in one commit, with one-line error messages."""

import gc
import json
import logging
import os
import re
import shlex
from itertools import chain
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from ..errors import FFPError, one_line
from ..utils.folders import RECORD, name_some, read_record, recorded_files


logger = logging.getLogger(__name__)
# The model's name in a card: its folder until it is pushed, then the repository. All commands of a card use it.
CARD_NAME = re.compile(r'AutoModelForCausalLM\.from_pretrained\(("(?:[^"\\\n]|\\.)+")(?:, trust_remote_code=True)?\)')
CARD = "README.md"
# Names of what somebody may have put beside a checkpoint for its readers.
BESIDE = re.compile(r"(license|notice)[^/]*|[^/]+\.md", re.IGNORECASE)
MESSAGE = "Upload a model pruned by optimum-ffp"
ADVICE = {
    401: "the Hub doesn't accept the token: log in with `hf auth login`, or give another one by HF_TOKEN (token=...)",
    403: "the token may not do that: use one with write access, or name a repository that is yours",
    404: "the repository's owner doesn't exist, or the token has no access: check the name",
    409: "the repository was changed by another commit meanwhile: try again",
    429: "the Hub's rate limit is reached: try again later",
}
REFUSED = "the Hub rejected the request"
TROUBLE = "the Hub has a server error: try again later"
NO_ANSWER = "the connection to the Hub broke: check the connection and try again"


def check_push(repo_id: str, token: str | None = None) -> None:
    """Check offline, before a run, that an upload has a valid repository name and a token.

    Raises:
        FFPError: If the name is not a valid repository name, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FFPError(f"{repo_id!r} is not a valid repository name: {one_line(error)}") from None
    if not (token or get_token()):
        raise FFPError("an upload needs a token of the Hub: log in with `hf auth login`, or set HF_TOKEN (token=...)")


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a saved checkpoint in one commit, with the repository's name in its card. The folder is not changed.

    Args:
        folder: The checkpoint's folder.
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
        FFPError: If `folder` holds no model; if the Hub can't be reached or refuses the upload, with a command to
            retry; if `private` is set and the repository exists and is public; or if there is nothing to open a pull
            request for.
    """
    check_push(repo_id, token)
    if not (Path(folder) / "config.json").is_file():
        # All that is in the repository would count as left over.
        raise FFPError(f"{folder} is not the folder of a model; nothing was uploaded")
    api = HfApi(token=token)
    try:
        repo_id = _find(api, repo_id, revision) if create_pr else _make(api, repo_id, revision, private)
        # Not upload_folder, which may split an upload into several commits.
        commit = api.create_commit(
            repo_id,
            _operations(api, Path(folder), repo_id, revision),
            commit_message=commit_message or MESSAGE,
            revision=revision,
            create_pr=create_pr,
        )
        return str(commit.pr_url or commit.commit_url)
    except FFPError:
        raise
    # The HTTP library, the storage client and the thread pool raise different exceptions.
    except Exception as error:
        reason = describe_failure(error, token)
    options = {"private": private, "create-pr": create_pr, "revision": revision, "commit-message": commit_message}
    given = [[f"--{name}", *([] if value is True else [value])] for name, value in options.items() if value]
    command = shlex.join(["optimum-cli", "ffp", "push", os.fspath(folder), repo_id, *chain(*given)])
    # Otherwise the upload's objects redraw their progress bars after the error.
    gc.collect()
    raise FFPError(
        f"the upload to {repo_id} failed: {reason}. The checkpoint is complete in {folder}; retry with: {command}"
    )


def name_repository(card: str, repo_id: str) -> str:
    """Return a card whose commands use the repository instead of the previous folder or repository."""
    found = CARD_NAME.search(card)
    if found is None:
        return card
    before = json.loads(found[1])
    card = card.replace(found[1], json.dumps(repo_id, ensure_ascii=False))
    # The name may be quoted in shell commands.
    for name in (shlex.quote(before), before):
        card = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", lambda _: shlex.quote(repo_id), card)
    return card


def _make(api: HfApi, repo_id: str, revision: str | None, private: bool | None) -> str:
    """Create a repository and a branch where they don't exist, and return the name with its owner."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise FFPError(
            f"{repo_id} exists and is public, so nothing was uploaded: name another, or don't ask for private"
        )
    if revision:
        try:
            api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _find(api: HfApi, repo_id: str, revision: str | None) -> str:
    """Check that a repository and its branch exist, for a pull request, and return the name with its owner."""
    repo_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
    try:
        api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        raise FFPError(
            f"{repo_id} has no branch {revision} to open a pull request for; leave out --revision (revision)"
        ) from None
    except RepositoryNotFoundError:
        raise FFPError(
            f"there is no repository {repo_id} to open a pull request for, or the token has no access to it; check "
            "the name, or leave out --create-pr (create_pr) to create it"
        ) from None
    return repo_id


def _operations(
    api: HfApi, folder: Path, repo_id: str, revision: str | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # Files of git and of download caches are skipped without a word.
    found = [*filter_repo_objects(paths, ignore_patterns=DEFAULT_IGNORE_PATTERNS)]
    written = recorded_files(read_record(folder), found)
    left = {name for name in found if name not in written and not BESIDE.fullmatch(name)}
    if left:
        logger.warning("not of the checkpoint, and not uploaded: %s", name_some(left))
    files = {name: paths[name] for name in found if name not in left}
    there = api.list_repo_files(repo_id, revision=revision)
    before = {}
    if RECORD in there:
        before = read_record(Path(api.hf_hub_download(repo_id, RECORD, revision=revision)).parent)
    # Files of the checkpoint that was there before.
    stale = sorted(recorded_files(before, there) - files.keys())
    contents: dict[str, Path | bytes] = dict(files)
    if CARD in files:
        contents[CARD] = name_repository(files[CARD].read_text(encoding="utf-8"), repo_id).encode()
    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    return [*additions, *(CommitOperationDelete(name) for name in stale)]


def describe_failure(error: BaseException, token: str | None = None) -> str:
    """Return the Hub's response or the connection error and advice, in one line without any token."""
    links = [error]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    for link in links:
        response = getattr(link, "response", None)
        # Errors of Xet's client have no response, only a message.
        status = re.search(r"HTTP status \w+ error \((\d{3}) ([^)]*)\)", str(link))
        if response is not None:
            number, said = response.status_code, getattr(link, "server_message", None) or response.reason_phrase
        elif status is not None:
            number, said = int(status[1]), status[2]
        else:
            continue
        advice = TROUBLE if number >= 500 else ADVICE.get(number, REFUSED)
        return f"{number} {one_line(said, token)}; {advice}"
    found = one_line(error, token)
    cause = one_line(links[-1], token)
    found = found if cause in found else f"{found} ({cause})"
    return found if isinstance(error, ValueError) else f"{found}; {NO_ANSWER}"

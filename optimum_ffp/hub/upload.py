"""The Hub: a checkpoint goes up in one commit, and what goes wrong there is said in one line."""

import gc
import os
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from ..errors import FFPError


# What a card calls its model: its folder until it is pushed, then a repository. All of its commands say the same.
CARD_NAME = re.compile(r'AutoModelForCausalLM\.from_pretrained\("([^"\\\n]+)", trust_remote_code=True\)')
CARD = "README.md"
# What an earlier push may have left and a later one may not have: a shard, the agent of another method.
OURS = (
    *("model*.safetensors", "model.safetensors.index.json", "modeling_ffp_*.py"),
    *("search/agent.safetensors", "search.png", "calibration.png", "pareto.png"),
)
ADVICE = {
    401: "the Hub doesn't accept the token: log in with `hf auth login`, or give another one by --token (token=...)",
    403: "the token may not do that: use one with write access, or name a repository that is yours",
    404: "there is no such place, or the token may not see it: check the owner's name",
    409: "the repository was changed by somebody else meanwhile: try again",
    429: "the Hub asks for a pause: try again later",
}
REFUSED = "the Hub doesn't take it"
TROUBLE = "the Hub is in trouble: try again later"
NO_ANSWER = "the connection to the Hub broke: check the connection and try again"


def check_push(repo_id: str, token: str | None = None) -> None:
    """Finds out before the work, and without asking the Hub, what would stop an upload after it.

    Raises:
        FFPError: If the Hub allows no such name, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FFPError(f"{repo_id!r} can't be a repository's name: {one_line(error)}") from None
    if not (token or get_token()):
        raise FFPError("an upload needs a token of the Hub: log in with `hf auth login`, or give --token (token=...)")


def push_folder(folder: str | os.PathLike, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a saved checkpoint in one commit, with the repository's name in its card. The folder stays as it is.

    Args:
        folder: The checkpoint's folder.
        repo_id: `name` or `owner/name`; created if it doesn't exist.
        private: Whether a new repository is private.
        token: Of the Hub; the one that `hf auth login` has stored if `None`.

    Returns:
        The address of the commit.

    Raises:
        FFPError: If the Hub can't be reached or refuses, the message says how to go on; or if it should be private and
            is there already for all to see.
    """
    check_push(repo_id, token)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise FFPError(
                f"{repo_id} exists and is public, so nothing was uploaded: name another, or don't ask for private"
            )
        # Not upload_folder, which may cut an upload into several commits.
        commit = api.create_commit(
            repo_id, _operations(api, Path(folder), repo_id), commit_message="Upload a model pruned by optimum-ffp"
        )
        return str(commit.commit_url)
    except FFPError:
        raise
    # The HTTP library, the storage client and the thread pool below each raise exceptions of their own.
    except Exception as error:
        reason = describe_failure(error, token)
    command = shlex.join(
        ["optimum-cli", "ffp", "push", os.fspath(folder), repo_id, *(["--private"] if private else [])]
    )
    # What is left of the upload would draw its progress bars once more, after the error.
    gc.collect()
    raise FFPError(f"the upload to {repo_id} failed: {reason}. The model is whole in {folder}; go on with: {command}")


def name_repository(card: str, repo_id: str) -> str:
    """A card whose commands name that repository, and not the folder or the repository that they named before."""
    found = CARD_NAME.search(card)
    if found is None:
        return card
    # In a shell it may be quoted.
    for name in (shlex.quote(found[1]), found[1]):
        card = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", repo_id, card)
    return card


def _operations(api: HfApi, folder: Path, repo_id: str) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # What git and downloads leave in a folder is no part of the model.
    files = {name: paths[name] for name in filter_repo_objects(paths, ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
    stale = [
        name
        for name in api.list_repo_files(repo_id)
        if name not in files and any(fnmatch(name, pattern) for pattern in OURS)
    ]
    contents: dict[str, Path | bytes] = dict(files)
    if CARD in files:
        contents[CARD] = name_repository(files[CARD].read_text(encoding="utf-8"), repo_id).encode()
    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    return [*additions, *(CommitOperationDelete(name) for name in stale)]


def describe_failure(error: BaseException, token: str | None = None) -> str:
    """What the Hub has answered, or how the connection ended, and what to do about it; one line without any token."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        response = getattr(link, "response", None)
        # Xet's client has no response to look into, only its text.
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
    cause = one_line(chain[-1], token)
    found = found if cause in found else f"{found} ({cause})"
    return found if isinstance(error, ValueError) else f"{found}; {NO_ANSWER}"


def one_line(error: BaseException | str, token: str | None = None) -> str:
    """The first line of a message that says something, any token in it blotted out."""
    text = str(error)
    for secret in f"{token or ''} {get_token() or ''}".split():
        text = text.replace(secret, "***")
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return lines[0] if lines else (type(error).__name__ if isinstance(error, BaseException) else "")

"""Checks before an upload to the Hub, and one-line errors of the Hub."""

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import FFPError, one_line


ADVICE = {
    401: "the Hub rejects the token: log in with `hf auth login`, or set another one in HF_TOKEN (token=...)",
    403: "the token lacks permission: use one with write access, or a repository of your own",
    404: "the repository, its branch or its owner doesn't exist, or the token has no access: check the names",
    409: "another commit changed the repository in the meantime: try again",
    429: "the Hub's rate limit was reached: try again later",
}


def check_push(repo_id: str, token: str | None = None) -> None:
    """Raise `FFPError`, offline, if a repository name is not valid, or there is no token."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FFPError(f"{repo_id!r} is not a valid repository name: {one_line(error)}") from None
    if not (token or get_token()):
        raise FFPError("an upload needs a Hub token: log in with `hf auth login`, or set HF_TOKEN (token=...)")


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

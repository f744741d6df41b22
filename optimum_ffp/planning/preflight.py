"""Checks for problems that would stop a prune or a recovery later."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants

from ..config import FFPConfig, RecoveryPlan
from ..data import check_text
from ..errors import FFPError
from ..hub.upload import check_push, describe_failure
from ..utils.folders import check_file, check_output, check_output_is_not_input, expand, first_existing
from ..utils.resume import check_work_folder, has_written, work_folder_of
from .estimate import format_bytes


logger = logging.getLogger(__name__)


def find_problems(
    config: FFPConfig | RecoveryPlan,
    models: Sequence[str],
    folders: Sequence[str],
    disk: int,
    overwrite: bool,
    resume: bool,
    repositories: Sequence[str],
    files: Mapping[str, bytes] | None = None,
) -> Iterator[FFPError]:
    """Yield an error for every problem that would stop a prune or a recovery, cheap checks first.

    `models` are read, `folders` and `files`, which begin with the given bytes, are written: `disk` bytes in all.
    """
    texts = {text.name: text for text in (*config.texts, *config.reported)}
    files, work_folder = files or {}, work_folder_of(folders[0])
    checks = [partial(check_output_is_not_input, output, [*models, *texts]) for output in (*folders, *files)]
    # Before the output folders: if work can be resumed, the error must suggest that and not to overwrite.
    checks.append(partial(check_work_folder, work_folder, resume, overwrite))
    replaceable = [overwrite or (resume and has_written(work_folder, folder)) for folder in folders]
    checks += [partial(check_output, *output) for output in zip(folders, replaceable)]
    checks += [partial(check_file, file, begins, overwrite) for file, begins in files.items()]
    checks.append(partial(check_disk, folders[0], disk, work_folder))
    checks += [partial(check_text, text, config.text_column) for text in texts.values() if not text.is_self]
    checks.append(partial(check_repositories, repositories))
    for check in checks:
        try:
            check()
        except FFPError as problem:
            yield problem


def free_disk(folder: str | os.PathLike) -> int:
    """Return the free bytes of the disk of a folder, which need not exist."""
    return shutil.disk_usage(first_existing(expand(folder).absolute())).free


def check_disk(folder: str | os.PathLike, needed: int, work_folder: Path) -> None:
    """Raise `FFPError` if the disk of a folder is too full, not counting what is in the work folder already."""
    free = free_disk(folder) + sum(file.stat().st_size for file in work_folder.rglob("*") if file.is_file())
    if needed > free:
        raise FFPError(
            f"the checkpoint and the work folder need {format_bytes(needed)} of disk, but {folder} has "
            f"{format_bytes(free)} free; free disk space, or choose a folder on another disk"
        )


def check_repositories(repositories: Sequence[str], owned: bool = True) -> None:
    """Raise `FFPError` if the Hub would refuse an upload; only warn if it doesn't answer.

    Unless `owned` is off, as for pull requests, they must belong to the token's owner or one of their organizations.
    """
    for repo_id in repositories:
        check_push(repo_id)
    if not repositories:
        return
    if constants.HF_HUB_OFFLINE:
        raise FFPError("nothing can be uploaded while offline mode is on (HF_HUB_OFFLINE=1); unset it to push")
    try:
        user = HfApi().whoami()
    except Exception as error:  # The HTTP library raises its own exceptions too.
        reason = describe_failure(error)
        # Refusals, which a retry would get too.
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise FFPError(f"the upload to {repositories[0]} would fail: {reason}") from None
        logger.warning("could not check whether the Hub accepts the upload: %s", reason)
        return
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise FFPError("the Hub token is read-only; set HF_TOKEN to one with write access")
    # The permissions of a fine-grained token are not known before its use.
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    for repo_id in repositories:
        owner = repo_id.rpartition("/")[0]
        if owned and owner and owner not in owners and role != "fineGrained":
            raise FFPError(
                f"{user['name']} may not create or write to {repo_id}; choose an owner among "
                f"{', '.join(owners)}, or open a pull request there with ffp push --create-pr"
            )

"""What would stop a prune hours later, found before it starts."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants

from ..config import FFPConfig
from ..data import check_text_file, find_files, hub_error, hub_source
from ..errors import FFPError
from ..hub.upload import check_push, describe_failure
from ..utils.folders import check_apart, check_file, check_output
from ..utils.resume import check_work_folder
from .plan import GIB, Plan


logger = logging.getLogger(__name__)
# Answers of the Hub that later attempts will get too.
REFUSALS = (401, 403)


def find_problems(
    plan: Plan,
    config: FFPConfig,
    folders: Sequence[str],
    front: Mapping[str, bytes],
    work_folder: Path,
    overwrite: bool,
    resume: bool,
    repositories: Sequence[str],
    token: str | None = None,
) -> Iterator[FFPError]:
    """Everything that would keep a prune from its end, cheap things first.

    Args:
        plan: What the prune needs.
        config: All options.
        folders: Where checkpoints go.
        front: Files that the Pareto front is written to, and what they begin with.
        work_folder: Where finished work is kept for a resumption.
        overwrite: Whether what exists may be replaced.
        resume: Whether to go on from what is in the work folder.
        repositories: Where uploads go.
        token: Of the Hub.

    Yields:
        One error a problem, with what to do about it.
    """
    sources = [source for source in (plan.model, config.dataset, config.eval_dataset) if source]
    checks = [partial(check_apart, output, sources) for output in (*folders, *front)]
    # Before the folders that it has saved already, which it would be told to overwrite.
    checks.append(partial(check_work_folder, work_folder, resume, overwrite))
    checks += [partial(check_output, folder, overwrite) for folder in folders]
    checks += [partial(check_file, file, begins, overwrite) for file, begins in front.items()]
    checks.append(partial(check_disk, folders[0], plan.disk_bytes, work_folder))
    datasets = dict.fromkeys(filter(None, (config.dataset, config.eval_dataset)))
    checks += [partial(check_dataset, name, config.text_column) for name in datasets]
    checks.append(partial(check_repositories, repositories, token))
    for check in checks:
        try:
            check()
        except FFPError as problem:
            yield problem


def check_disk(folder: str | os.PathLike, needed: int, work_folder: Path) -> None:
    """Whether a prune's files fit on the disk that `folder` is on.

    Args:
        folder: Where the first checkpoint goes.
        needed: Bytes that the prune writes from its beginning to its end.
        work_folder: What is in it is written already.

    Raises:
        FFPError: If they don't.
    """
    place = Path(folder).expanduser().absolute()
    while not place.is_dir():
        place = place.parent
    written = sum(file.stat().st_size for file in work_folder.glob("*") if file.is_file())
    free = shutil.disk_usage(place).free
    if needed - written > free:
        raise FFPError(
            f"{place} has {free / GIB:.2f} GiB of free disk, and the checkpoint and what a resumption needs will take "
            f"{(needed - written) / GIB:.2f} GiB; make room, or name a folder on another disk"
        )


def check_dataset(dataset: str, text_column: str | None = None) -> None:
    """Whether the files or splits of a dataset are there and hold text; no more than first rows are read.

    Args:
        dataset: As in `load_windows`.
        text_column: The column that the user has named.

    Raises:
        FFPError: If they aren't or don't.
    """
    files = find_files(dataset)
    if not files and dataset != "self":
        _check_hub_dataset(dataset)
    for file in (file for shards in files.values() for file in shards):
        if not os.access(file, os.R_OK):
            raise FFPError(f"{file} can't be read: you have no permission; change it, or name another file")
        check_text_file(file, text_column)


def _check_hub_dataset(dataset: str) -> None:
    from datasets import get_dataset_split_names

    try:
        get_dataset_split_names(*hub_source(dataset))
    except Exception as error:  # The hub's clients raise dozens of types; all mean that the data isn't to be had.
        raise hub_error(dataset, error, prunes=True) from None


def check_repositories(repositories: Sequence[str], token: str | None = None) -> None:
    """Whether the Hub takes the token, and its owner may create repositories of these names; it is asked once.

    A Hub that doesn't answer now may do so when the model is done, so that is a warning alone.

    Args:
        repositories: `name` or `owner/name`.
        token: Of the Hub; the one that `hf auth login` has stored if `None`.

    Raises:
        FFPError: If an upload would be refused.
    """
    for repo_id in repositories:
        check_push(repo_id, token)
    if not repositories:
        return
    if constants.HF_HUB_OFFLINE:
        raise FFPError("nothing can be uploaded while offline mode is on (HF_HUB_OFFLINE=1); unset it to push")
    try:
        user = HfApi(token=token).whoami()
    except Exception as error:  # The HTTP library's own exceptions too.
        reason = describe_failure(error, token)
        if getattr(getattr(error, "response", None), "status_code", None) in REFUSALS:
            raise FFPError(f"the upload to {repositories[0]} would fail: {reason}") from None
        logger.warning("whether the Hub will take the upload is not known: %s", reason)
        return
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise FFPError("the token of the Hub may only read: give one with write access by --token (token=...)")
    # What a fine-grained token may do, and where, only its use shows.
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    for repo_id in repositories:
        owner = repo_id.rpartition("/")[0]
        if owner and owner not in owners and role != "fineGrained":
            raise FFPError(f"{repo_id} can't be created by {user['name']}; choose an owner among {', '.join(owners)}")

"""Checks before a prune or a recovery for problems that would stop it later."""

import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants

from ..config import FFPConfig, RecoveryConfig
from ..data import check_hub_text, check_text_file, find_files
from ..errors import FFPError
from ..hub.upload import check_push, describe_failure
from ..recovery.launch import check_device
from ..utils.folders import check_apart, check_file, check_output, expand, first_existing
from ..utils.resume import check_work_folder
from .work import GIB


logger = logging.getLogger(__name__)
# HTTP status codes that a later attempt would get too.
REFUSALS = (401, 403)


@dataclass(frozen=True)
class Outputs:
    """What a command writes, and whether it may.

    Attributes:
        folders: Folders of checkpoints.
        work_folder: Folder of finished work.
        disk: Bytes that what is written takes at most at one time.
        result: Bytes of the checkpoints of the prune or the recovery alone.
        overwrite: Whether what exists may be replaced.
        resume: Whether to resume from the work folder.
        front: Files of the Pareto front, with their first bytes.
        repositories: Repositories to upload to.
        own: Those of the folders that the resumed run has begun to write, and may replace.
    """

    folders: Sequence[str]
    work_folder: Path
    disk: int
    result: int
    overwrite: bool
    resume: bool
    front: Mapping[str, bytes] = field(default_factory=dict)
    repositories: Sequence[str] = ()
    own: Collection[str] = ()


def find_problems(
    config: FFPConfig | RecoveryConfig,
    models: Sequence[str],
    outputs: Outputs,
    token: str | None = None,
    trains_on: Iterable[torch.device] = (),
) -> Iterator[FFPError]:
    """Finds problems that would stop a prune or a recovery, cheap checks first.

    Args:
        config: Options.
        models: Models that are read.
        outputs: What is written.
        token: Access token for the Hub.
        trains_on: Devices that a recovery runs on.

    Yields:
        One error per problem, which says what to do.
    """
    texts = [*dict.fromkeys([*config.texts.names, *config.reported.names])]
    checks = [partial(check_device, device) for device in {*trains_on}]
    checks += [partial(check_apart, output, [*models, *texts]) for output in (*outputs.folders, *outputs.front)]
    # Before the output folders: if work can be resumed, the error must suggest that and not to overwrite.
    checks.append(partial(check_work_folder, outputs.work_folder, outputs.resume, outputs.overwrite))
    checks += [partial(check_output, folder, outputs.overwrite or folder in outputs.own) for folder in outputs.folders]
    checks += [partial(check_file, file, begins, outputs.overwrite) for file, begins in outputs.front.items()]
    checks.append(partial(check_disk, outputs.folders[0], outputs.disk, outputs.work_folder, outputs.result))
    checks += [partial(check_dataset, name, config.text_column, token) for name in texts]
    checks.append(partial(check_repositories, outputs.repositories, token))
    for check in checks:
        try:
            check()
        except FFPError as problem:
            yield problem


def check_disk(folder: str | os.PathLike, needed: int, work_folder: Path, result: int = 0) -> None:
    """Checks that what a command writes fits on the disk of `folder`.

    Args:
        folder: Folder of the first checkpoint.
        needed: Bytes that it takes at most at one time.
        work_folder: Folder of finished work, whose bytes are already written.
        result: Bytes of the checkpoints alone, which come last.

    Raises:
        FFPError: If there is too little space.
    """
    place = first_existing(expand(folder).absolute())
    written = sum(file.stat().st_size for file in work_folder.rglob("*") if file.is_file())
    # Of options that have changed since there may be entries that nobody reads again.
    written = min(written, max(0, needed - result))
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise FFPError(f"{folder} can't be written: {error}; name another folder") from None
    if needed - written > free:
        raise FFPError(
            f"{place} has {free / GIB:.2f} GiB of free disk, and the checkpoint and what a resumption needs will take "
            f"{(needed - written) / GIB:.2f} GiB; make room, or name a folder on another disk"
        )


def check_dataset(dataset: str, text_column: str | None = None, token: str | None = None) -> None:
    """Checks that the files of a dataset, or a split of one on the Hub, have text; only the first rows are read.

    Args:
        dataset: One text, as in `load_windows`.
        text_column: Column named by the user.
        token: Access token for the Hub.

    Raises:
        FFPError: If the dataset can't be found or read, or has no text.
    """
    files = find_files(dataset)
    if not files and dataset != "self":
        check_hub_text(dataset, text_column, token)
    for file in (file for shards in files.values() for file in shards):
        if not os.access(file, os.R_OK):
            raise FFPError(f"{file} can't be read: you have no permission; change it, or name another file")
        check_text_file(file, text_column)


def check_repositories(repositories: Sequence[str], token: str | None = None, owned: bool = True) -> None:
    """Checks with one request that the Hub accepts the token, and that its owner may create the repositories.

    If the Hub does not answer there is only a warning: it may be reachable when the prune is finished.

    Args:
        repositories: `name` or `owner/name`.
        token: Access token for the Hub; the one stored by `hf auth login` if `None`.
        owned: Whether they must be of the token's owner or of an organisation of theirs; not for pull requests.

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
    except Exception as error:  # The HTTP library raises its own exceptions too.
        reason = describe_failure(error, token)
        if getattr(getattr(error, "response", None), "status_code", None) in REFUSALS:
            raise FFPError(f"the upload to {repositories[0]} would fail: {reason}") from None
        logger.warning("could not check whether the Hub accepts the upload: %s", reason)
        return
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise FFPError("the token of the Hub may only read: give one with write access by --token (token=...)")
    # The permissions of a fine-grained token are not known before its use.
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    for repo_id in repositories:
        owner = repo_id.rpartition("/")[0]
        if owned and owner and owner not in owners and role != "fineGrained":
            raise FFPError(
                f"{repo_id} isn't one that {user['name']} may create or write to; choose an owner among "
                f"{', '.join(owners)}, or open a pull request there by ffp push --create-pr"
            )

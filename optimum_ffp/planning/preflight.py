"""Checks before a prune or a recovery for problems that would stop it later."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants

from ..config import FFPConfig
from ..data import check_text_file, find_files, hub_splits
from ..errors import FFPError
from ..hub.upload import check_push, describe_failure
from ..options import read_mix
from ..recovery.config import RecoveryConfig
from ..recovery.launch import check_device
from ..utils.folders import check_apart, check_file, check_output, first_existing
from ..utils.resume import check_work_folder
from .plan import Plan
from .recovery import RecoveryPlan
from .work import GIB


logger = logging.getLogger(__name__)
# HTTP status codes that a later attempt would get too.
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
    recovered: Mapping[str, RecoveryPlan] | None = None,
) -> Iterator[FFPError]:
    """Finds problems that would stop a prune, cheap checks first.

    Args:
        plan: Plan of the prune.
        config: Options of the prune.
        folders: Folders of the checkpoints.
        front: Files of the Pareto front, with their first bytes.
        work_folder: Folder of finished work.
        overwrite: Whether existing outputs may be replaced.
        resume: Whether to resume from the work folder.
        repositories: Repositories to upload to.
        token: Access token for the Hub.
        recovered: Folders of models that are recovered afterwards, with the plan of each.

    Yields:
        One error per problem, which says what to do.
    """
    texts, recovered = _texts(config), recovered or {}
    checks = [partial(check_device, device) for device in {later.machine.device for later in recovered.values()}]
    checks += [partial(check_apart, output, [plan.model, *texts]) for output in (*folders, *front, *recovered)]
    # Before the output folders: if work can be resumed, the error must suggest that and not to overwrite.
    checks.append(partial(check_work_folder, work_folder, resume, overwrite))
    checks += [partial(check_output, folder, overwrite) for folder in (*folders, *recovered)]
    checks += [partial(check_file, file, begins, overwrite) for file, begins in front.items()]
    # What a prune or a training resumes from is removed before the next training begins.
    trained = plan.disk["save"] + sum(later.result for later in recovered.values())
    resumed = max((later.disk - later.result for later in recovered.values()), default=0)
    checks.append(partial(check_disk, folders[0], max(plan.disk_bytes, trained + resumed), work_folder))
    checks += [partial(check_dataset, name, config.text_column, token) for name in texts]
    checks.append(partial(check_repositories, repositories, token))
    yield from _failures(checks)


def find_recovery_problems(
    plan: RecoveryPlan,
    config: RecoveryConfig,
    models: Sequence[str],
    folder: str,
    work_folder: Path,
    overwrite: bool,
    resume: bool,
    repositories: Sequence[str],
    token: str | None = None,
) -> Iterator[FFPError]:
    """Finds problems that would stop a recovery, cheap checks first.

    Args:
        plan: Plan of the recovery.
        config: Options of the recovery.
        models: The pruned and the dense model.
        folder: Folder of the result.
        work_folder: Folder of finished work.
        overwrite: Whether an existing output may be replaced.
        resume: Whether to resume from the work folder.
        repositories: Repositories to upload to.
        token: Access token for the Hub.

    Yields:
        One error per problem, which says what to do.
    """
    texts = _texts(config)
    checks = [
        partial(check_device, plan.machine.device),
        partial(check_apart, folder, [*models, *texts]),
        partial(check_work_folder, work_folder, resume, overwrite),
        partial(check_output, folder, overwrite),
        partial(check_disk, folder, plan.disk, work_folder),
        *(partial(check_dataset, name, config.text_column, token) for name in texts),
        partial(check_repositories, repositories, token),
    ]
    yield from _failures(checks)


def _texts(config: FFPConfig | RecoveryConfig) -> list[str]:
    return [*dict.fromkeys([*read_mix(config.dataset), *read_mix(config.eval_dataset or config.dataset)])]


def _failures(checks: Iterable[Callable[[], None]]) -> Iterator[FFPError]:
    for check in checks:
        try:
            check()
        except FFPError as problem:
            yield problem


def check_disk(folder: str | os.PathLike, needed: int, work_folder: Path) -> None:
    """Checks that the files of a prune fit on the disk of `folder`.

    Args:
        folder: Folder of the first checkpoint.
        needed: Bytes that the whole prune writes.
        work_folder: Folder of finished work, whose bytes are already written.

    Raises:
        FFPError: If there is too little space.
    """
    place = first_existing(Path(folder).expanduser().absolute())
    written = sum(file.stat().st_size for file in work_folder.rglob("*") if file.is_file())
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
    """Checks that the files or splits of a dataset exist and have text; only the first rows are read.

    Args:
        dataset: One text, as in `load_windows`.
        text_column: Column named by the user.
        token: Access token for the Hub.

    Raises:
        FFPError: If the dataset can't be found or read, or has no text.
    """
    files = find_files(dataset)
    if not files and dataset != "self":
        hub_splits(dataset, token=token)
    for file in (file for shards in files.values() for file in shards):
        if not os.access(file, os.R_OK):
            raise FFPError(f"{file} can't be read: you have no permission; change it, or name another file")
        check_text_file(file, text_column)


def check_repositories(repositories: Sequence[str], token: str | None = None) -> None:
    """Checks with one request that the Hub accepts the token, and that its owner may create the repositories.

    If the Hub does not answer there is only a warning: it may be reachable when the prune is finished.

    Args:
        repositories: `name` or `owner/name`.
        token: Access token for the Hub; the one stored by `hf auth login` if `None`.

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
        logger.warning("whether the Hub will take the upload is not known: %s", reason)
        return
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise FFPError("the token of the Hub may only read: give one with write access by --token (token=...)")
    # The permissions of a fine-grained token are not known before its use.
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    for repo_id in repositories:
        owner = repo_id.rpartition("/")[0]
        if owner and owner not in owners and role != "fineGrained":
            raise FFPError(f"{repo_id} can't be created by {user['name']}; choose an owner among {', '.join(owners)}")

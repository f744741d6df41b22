"""A pruned model as a folder, whole or not at all, and as a repository on the Hub."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .card import write_card
from .errors import FFPError
from .plots import write_plots
from .result import PruningResult


AGENT_FILE = "agent.safetensors"
LOG_FILE = "search_log.jsonl"


def check_output(directory: str | os.PathLike, overwrite: bool = False) -> Path:
    """The folder to write, if it can be written.

    Raises:
        FFPError: If it exists and `overwrite` is off, or its parent can't be written to.
    """
    path = Path(directory).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise FFPError(f"{directory} is a file; name a folder")
    if path.exists() and not overwrite:
        raise FFPError(f"{directory} exists; name another folder, or give --overwrite (overwrite=True) to replace it")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FFPError(f"{directory} can't be written: {parent} is not a folder that you may write to")
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the context ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if path.exists():
            replaced = staging.with_suffix(".replaced")
            path.rename(replaced)
            staging.rename(path)
            shutil.rmtree(replaced)
        else:
            staging.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_checkpoint(result: PruningResult, directory: str | os.PathLike, overwrite: bool = False) -> Path:
    """Writes everything that belongs to a pruned model.

    Args:
        result: What to save.
        directory: The folder. It appears whole or not at all.
        overwrite: Whether to replace a folder that exists.

    Raises:
        FFPError: If the folder exists or can't be written.
    """
    path = check_output(directory, overwrite)
    try:
        with whole_folder(path) as folder:
            _write(result, folder)
    except OSError as error:
        raise FFPError(f"{directory} can't be written: {error}; nothing was left there") from None
    return path


def _write(result: PruningResult, folder: Path) -> None:
    result.model.save_pretrained(folder)
    result.tokenizer.save_pretrained(folder)
    record = result.config.to_dict() | result.to_dict()
    (folder / result.config.CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with open(folder / LOG_FILE, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in result.log)
    if result.agent is not None:
        save_file({name: np.ascontiguousarray(array) for name, array in result.agent.items()}, folder / AGENT_FILE)
    plots = write_plots(result, folder)
    write_card(result, folder, plots)


def load_agent(source: str | os.PathLike, token: str | None = None) -> dict[str, np.ndarray]:
    """Weights of the agent that searched a checkpoint.

    Args:
        source: A checkpoint's folder or Hub id.
        token: Of the Hub.

    Raises:
        FFPError: If there is none, or the file is broken.
    """
    path = Path(source).expanduser() / AGENT_FILE
    if not path.is_file():
        if path.parent.is_dir():
            raise FFPError(f"{source} holds no {AGENT_FILE}; warm-start from a checkpoint that method ffp made")
        try:
            path = Path(hf_hub_download(os.fspath(source), AGENT_FILE, token=token))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FFPError(f"there is no folder {source} and the Hub has no agent of that name: {reason}") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FFPError(f"{path} is no valid safetensors file: {error}") from None


def push_checkpoint(result: PruningResult, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a checkpoint in one commit.

    Args:
        result: What to upload.
        repo_id: `name` or `owner/name`; created if it doesn't exist.
        private: Whether a new repository is private.
        token: Of the Hub; the one that `hf auth login` has stored if `None`.

    Returns:
        The address of the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(result, Path(folder))
        return push_folder(folder, repo_id, private, token)


def push_folder(folder: str | os.PathLike, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a saved checkpoint in one commit.

    Raises:
        FFPError: If the Hub can't be reached or refuses; the message says how to go on.
    """
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repository.repo_id, commit_message="Upload a model pruned by optimum-ffp"
        )
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FFPError(f"the upload to {repo_id} failed: {reason}; go on with: hf upload {repo_id} FOLDER .") from None
    return str(commit.commit_url)

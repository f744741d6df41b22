"""A pruned model as a folder, whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from .card import write_card
from .errors import FFPError
from .hub import check_push, explain, push_folder
from .naming import without_folders
from .plots import write_plots
from .report import write_report
from .result import PruningResult


# Not beside the weights: vLLM takes every .safetensors file of a folder for a part of the model.
AGENT_FILE = "search/agent.safetensors"
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
    _remove_remains(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", suffix=".partial", dir=path.parent))
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


def _remove_remains(path: Path) -> None:
    """Removes what processes have left beside `path` that were killed while they wrote it."""
    for rest in path.parent.glob(f".{path.name}.*"):
        owner = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\..*\.(partial|replaced)", rest.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(rest, ignore_errors=True)


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
    save_tokenizer(result.tokenizer, folder)
    record = without_folders(result.config.to_dict() | result.to_dict())
    (folder / result.config.CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with open(folder / LOG_FILE, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in result.log)
    if result.agent is not None:
        (folder / AGENT_FILE).parent.mkdir()
        save_file({name: np.ascontiguousarray(array) for name, array in result.agent.items()}, folder / AGENT_FILE)
    plots = write_plots(result, folder)
    write_card(result, folder, plots)
    write_report(result, folder, plots)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer so that transformers 4 reads it too.

    Since 5 a tokenizer that comes from `tokenizer.json` alone is of class `TokenizersBackend`, which 4 doesn't know;
    the name that both know is `PreTrainedTokenizerFast`, and there 4 must be told not to make `token_type_ids`.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": tokenizer.model_input_names}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_agent(
    source: str | os.PathLike, token: str | None = None, cache_dir: str | None = None
) -> dict[str, np.ndarray]:
    """Weights of the agent that searched a checkpoint.

    Args:
        source: A checkpoint's folder, or its Hub id; `id@revision` names a branch, tag or commit.
        token: Of the Hub.
        cache_dir: Where downloads are kept.

    Raises:
        FFPError: If there is none, or the file is broken.
    """
    folder = Path(source).expanduser()
    path = folder / AGENT_FILE
    if not path.is_file():
        if folder.is_dir():
            raise FFPError(f"{source} holds no {AGENT_FILE}; warm-start from a checkpoint that method ffp made")
        repo_id, _, revision = os.fspath(source).partition("@")
        try:
            path = Path(
                hf_hub_download(repo_id, AGENT_FILE, revision=revision or None, token=token, cache_dir=cache_dir)
            )
        # The HTTP library's own exceptions too.
        except Exception as error:
            reason = explain(error, token)
            raise FFPError(f"there is no folder {source}, and the Hub gives no agent of that name: {reason}") from None
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

    Raises:
        FFPError: If the Hub can't be reached or refuses; the message says how to go on.
    """
    check_push(repo_id, token)
    parent = Path(tempfile.mkdtemp(prefix="optimum-ffp-"))
    folder = save_checkpoint(result, parent / repo_id.rpartition("/")[2])
    # A folder that could not be uploaded stays: the error names it, and it may be all that is left of a long search.
    address = push_folder(folder, repo_id, private, token)
    shutil.rmtree(parent)
    return address

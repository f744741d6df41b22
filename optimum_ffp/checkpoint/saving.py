"""Saving of checkpoints, and reading of their records and agents."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from ..data.samples import supports_chat
from ..errors import FFPError, convert_errors, one_line
from ..export import plan_export
from ..hub.naming import without_folders
from ..hub.upload import describe_failure
from ..modeling.auto import is_pruned
from ..utils.folders import atomic_folder, check_output, expand, list_files
from ..utils.json import to_json
from ..utils.record import RECORD, ModelRecord, PolicyRecord, Record
from ..utils.resume import has_written, run_id
from .card import CARD, render_card
from .html_report import write_report
from .plots import write_plots
from .result import PruningResult


# In a subfolder, since vLLM loads every .safetensors file next to the weights as part of the model.
AGENT_FILE = "search/agent.safetensors"
LOG_FILE = "search_log.jsonl"
FILE_SIZE = "2GB"
# Entries of a tokenizer's config about its loading, and about a processor, which isn't saved.
TRANSIENT_KEYS = ("is_local", "local_files_only", "processor_class")
# Prefixes of tokenizer classes that add a start token in transformers 4 by default.
ADD_START_TOKEN = ("Llama", "CodeLlama", "Gemma")


def save_checkpoint(
    result: PruningResult, directory: str | os.PathLike, overwrite: bool = False, work_folder: Path | None = None
) -> Path:
    """Write weights, code, tokenizer, config, log, agent, plots, card and report as `write_checkpoint` does."""
    return write_checkpoint(partial(_write, result), directory, overwrite, work_folder)


def write_checkpoint(
    write: Callable[[Path], Record],
    directory: str | os.PathLike,
    overwrite: bool,
    work_folder: Path | None = None,
) -> Path:
    """Write a checkpoint atomically, and return its path. Raises `FFPError` if it can't be written.

    Args:
        write: Writes all files except the record and the card to a folder, and returns the record.
        directory: Folder to write.
        overwrite: Whether to replace a folder, as in `check_output`.
        work_folder: Work folder of the run. A checkpoint written by the same run is always replaced.
    """
    path = check_output(directory, overwrite or has_written(work_folder, directory))
    remedy = f"; finished work is in {work_folder}: free disk space, then resume with --resume" if work_folder else ""
    with (
        convert_errors(
            lambda error: f"{directory} can't be written: {one_line(error)}; nothing was changed there{remedy}",
            # Rust libraries (safetensors, tokenizers) raise their own exceptions for OS errors.
            passes=lambda error: not isinstance(error, OSError) and "os error" not in str(error),
        ),
        atomic_folder(path) as folder,
    ):
        record = replace(
            write(folder),
            run=run_id(work_folder),
            files=tuple(sorted(list_files(folder) | {RECORD, CARD})),
        )
        record.write(folder)
        card = render_card(record, f"./{Path(os.path.abspath(directory)).name}")
        (folder / CARD).write_text(card, encoding="utf-8")
    return path


def _write(result: PruningResult, folder: Path) -> Record:
    save_model(result.model, folder)
    save_tokenizer(result.tokenizer, folder)
    options = result.plan.to_dict() | {"costs": result.search.times}
    record = Record(
        ffp_version=str(options.pop("ffp_version")),
        options=options,
        policy=PolicyRecord.of(result.policy),
        search=result.search.to_record(),
        provenance=result.provenance(),
        model=describe_model(result.model, result.tokenizer),
        request=result.request,
    )
    # Publishable JSON, without local folders, NaN and infinity.
    content, log = (json.loads(to_json(content)) for content in (without_folders(record.to_dict()), result.log))
    record = Record.from_dict(content)
    (folder / LOG_FILE).write_text("".join(f"{json.dumps(entry)}\n" for entry in log), encoding="utf-8")
    if result.agent is not None:
        (folder / AGENT_FILE).parent.mkdir()
        save_file({name: np.ascontiguousarray(array) for name, array in result.agent.items()}, folder / AGENT_FILE)
    write_plots(record, log, folder)
    write_report(replace(record, files=tuple(sorted(list_files(folder)))), folder)
    return record


def describe_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ModelRecord:
    """Return the part of the record that the card needs to describe the use of a model."""
    return ModelRecord(
        class_=type(model).__name__,
        code_file=f"{type(model).__module__.rpartition('.')[2]}.py" if is_pruned(model.config) else None,
        language_model_only=hasattr(model.config, "language_model_of"),
        chat=supports_chat(tokenizer),
        # torchao only quantizes `nn.Linear`; GPT-2 has `Conv1D` instead.
        linear=any(isinstance(module, nn.Linear) for module in model.base_model.modules()),
        gguf=_gguf_options(model, tokenizer),
    )


def _gguf_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the options of `ffp export` for a model; `None` if llama.cpp can't run it."""
    for options, pad_uniform in (("", False), (" --pad-uniform", True)):
        with suppress(FFPError):
            plan_export(model, tokenizer, pad_uniform)
            return options
    return None


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save the weights, config and code of a model, and its unmodified generation config."""
    # Many dense models have settings that transformers loads but refuses to save: a temperature without sampling.
    generation_config, model.generation_config = model.generation_config, GenerationConfig()
    # To save a tensor per expert, transformers copies most weights of a mixture: those of one file at a time if the
    # model is offloaded, otherwise all at once.
    vars(model)["hf_device_map"] = {"": "cpu"}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            model.save_pretrained(folder, max_shard_size=FILE_SIZE)
    finally:
        model.generation_config = generation_config
        del model.hf_device_map
    generation_config.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 can load it too.

    Version 4 lacks `TokenizersBackend`, and needs `model_input_names` to omit `token_type_ids`. Both versions read
    extra special tokens under their earlier name. Version 4 needs to know which tokens Llama and Gemma tokenizers add.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in TRANSIENT_KEYS:
        config.pop(name, None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": tokenizer.model_input_names}
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config.get("tokenizer_class", "").startswith(ADD_START_TOKEN):
        tokens = tokenizer("a").input_ids
        config["add_bos_token"] = tokens[:1] == [tokenizer.bos_token_id]
        config["add_eos_token"] = tokens[-1:] == [tokenizer.eos_token_id]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class SavedAgent(dict[str, np.ndarray]):
    """Weights of an agent by name, and their `source`: a folder, `id@commit`, or the placeholder `AGENT`."""

    def __init__(self, weights: Mapping[str, np.ndarray], source: str):
        super().__init__(weights)
        self.source = source


def load_agent(
    warm_start: str | os.PathLike | Mapping[str, np.ndarray] | None, token: str | None = None
) -> SavedAgent | None:
    """Load the agent to start a search from: weights, or those of a checkpoint's folder or Hub id, or `id@revision`.

    Raises `FFPError` if the checkpoint has no agent, or the file is corrupt.
    """
    if warm_start is None or isinstance(warm_start, SavedAgent):
        return warm_start
    if isinstance(warm_start, Mapping):
        return SavedAgent(warm_start, "AGENT")
    folder, source = expand(warm_start), os.fspath(warm_start)
    path = folder / AGENT_FILE
    if not folder.is_dir():
        repo_id, _, revision = source.partition("@")
        missing = f"there is no folder {source}, and no such agent on the Hub"
        with convert_errors(lambda error: f"{missing}: {describe_failure(error, token)}"):
            path = hf_hub_download(repo_id, AGENT_FILE, revision=revision or None, token=token)
        source = f"{repo_id}@{extract_commit_hash(path, None) or revision}"
    elif not path.is_file():
        raise FFPError(f"{source} contains no {AGENT_FILE}; warm-start from a checkpoint of method ffp")
    try:
        return SavedAgent(load_file(path), source)
    except (SafetensorError, OSError) as error:
        raise FFPError(f"{path} is not a valid safetensors file: {error}") from None

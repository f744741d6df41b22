"""Loading of models and tokenizers from a Hub id, folder or GGUF file, with one-line errors."""

import copy
import json
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from ..allocation.policy import UnitSize
from ..errors import FFPError, convert_errors, one_line
from ..hub.record import prune_record
from ..hub.validate_checkpoint import LENIENT, check_checkpoint, check_reachable
from ..utils import processes
from ..utils.folders import expand
from ..utils.precision import is_quantized, move
from .auto import FFPModelForCausalLM, attention_of, is_pruned, load_strictly, pruned_model_class
from .checks import NO_TOKENIZER, check_dequantizable, check_prunable, check_unquantized, check_usable, largest_token
from .families import MULTIMODAL, Mixture, find_family
from .gguf_file import check_complete, open_gguf
from .multimodal import language_config, language_model
from .offloading import check_offload, experts_on_disk, offload_layers


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a model, named as in transformers.

    Attributes:
        device: Device of the model (`"cpu"`, `"cuda"`, `"cuda:0"`, `"mps"`); the accelerator, if available, if `None`.
        dtype: `"auto"` for the checkpoint's dtype, a torch dtype or its name.
        offload: Where to store the weights of layers that aren't running: `"none"` (on the device), `"host"` (in host
            memory) or `"disk"` (in the files of the checkpoint, or of the work folder if they are converted).
            `FFPPruner` also accepts `"auto"`, the first of them with enough memory.
        trust_remote_code: Whether code of the tokenizer's repository may run.
        revision: Revision on the Hub.
        token: Access token of the Hub.
        base_model: Dense model of a model that was pruned before, if its record doesn't say where it is.
    """

    device: str | None = None
    dtype: str | torch.dtype = "auto"
    offload: str = "none"
    trust_remote_code: bool = False
    revision: str | None = None
    token: str | None = None
    base_model: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype | str:
        """The dtype; `"auto"` for the checkpoint's. Raises `FFPError` if there is none of this name."""
        named = getattr(torch, str(self.dtype), self.dtype)
        if named != "auto" and not (isinstance(named, torch.dtype) and named.is_floating_point):
            raise FFPError(f"dtype {self.dtype!r} is not known; choose from auto, float32, bfloat16, float16")
        return named

    def hub(self) -> dict[str, Any]:
        """Return the options of `huggingface_hub` that are set."""
        options = {"revision": self.revision, "token": self.token}
        return {name: value for name, value in options.items() if value is not None}


class _Source:
    """A causal LM of any family in a folder, on the Hub or in a GGUF file.

    Attributes:
        place: Folder or Hub id.
        file: Argument of `from_pretrained` for a GGUF file in the folder.
    """

    def __init__(self, model_id: str, options: LoadOptions):
        self.model_id, self.options, self.hub = model_id, options, options.hub()
        self.errors = partial(loading_errors, model_id, options.token)
        self.place, self.file, path = model_id, {}, expand(model_id)
        self.is_local = path.is_dir() or path.suffix == ".gguf"
        if path.suffix == ".gguf":
            if not path.is_file():
                raise FFPError(f"there is no file {model_id}")
            self.place, self.file = str(path.parent), {"gguf_file": path.name}
        elif path.is_dir():
            self.place = str(path)
        elif path.is_file() or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
            allowed = "use a Hub id, a folder with config.json, or a .gguf file"
            raise FFPError(f"there is no folder {model_id!r}; {allowed}")

    @cached_property
    def full_config(self) -> PretrainedConfig:
        """The config, that of all parts for a vision-language model."""
        with self.errors():
            if self.file:
                config = copy.deepcopy(_read_gguf_config(self.model_id, self.place, self.file["gguf_file"]))
            else:
                check_checkpoint(self.place, **self.hub)
                config = AutoConfig.from_pretrained(self.place, trust_remote_code=False, **self.hub)
        config._name_or_path = self.model_id
        return config

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config of the language model."""
        return language_config(self.full_config)

    @property
    def converts(self) -> bool:
        """Whether weights are loaded in another form than that of the files."""
        stored = self.config.dtype or torch.float32
        return bool(self.file) or is_quantized(self.config) or self.options.torch_dtype not in ("auto", stored)

    def converted(self, folder: Path) -> "_Source":
        """Write the model as it is loaded to a folder, and return that folder's source."""
        for part in self.load(dequantize=True):
            part.save_pretrained(folder)
        return _Source(str(folder), replace(self.options, dtype="auto", revision=None))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        # Prefer tokenizer.json to tekken.json of mistral-common.
        options = {"trust_remote_code": self.options.trust_remote_code, "mistral_format": False}
        with self.errors():
            tokenizer = AutoTokenizer.from_pretrained(self.place, **self.file, **self.hub, **options)
            # Raises if transformers has created an empty tokenizer because the checkpoint has none.
            largest_token(tokenizer, self.model_id)
        return tokenizer

    def load(
        self, pruned: bool = False, dequantize: bool = False, **arguments: Any
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model with further arguments of `from_pretrained`, and its tokenizer."""
        tokenizer, is_multimodal = self.tokenizer(), self.full_config.model_type in MULTIMODAL
        arguments |= {"dtype": self.options.torch_dtype, **attention_of(self.config), **self.hub}
        if dequantize and is_quantized(self.full_config):
            check_dequantizable(self.model_id, self.full_config)
            logger.warning(
                f"{self.model_id} is quantized; its weights are dequantized, and the result is not quantized"
            )
            self.full_config.quantization_config["dequantize"] = True
            arguments["config"] = self.full_config
        # Every process loads all weights: for FSDP, some versions of transformers give them to the first alone.
        with self.errors(), patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
            if self.file:
                # Without a config it would parse the file once more.
                arguments |= {"config": self.config, "quantization_config": GgufConfig(dequantize=True)}
                model = AutoModelForCausalLM.from_pretrained(self.place, **self.file, **arguments)
                check_complete(self.model_id, model)
                return model, tokenizer
            # Pickled weights are not read, since they can run code.
            arguments |= {"use_safetensors": True, "trust_remote_code": False}
            if pruned:
                return FFPModelForCausalLM.from_pretrained(self.place, **arguments), tokenizer
            auto_class = AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM
            model = load_strictly(auto_class, self.place, **arguments)
            if is_multimodal:
                logger.warning(f"{self.model_id} is a vision-language model; only its language model is used")
                model = language_model(model)
                # Older checkpoints store it with the processor.
                path = cached_file(self.place, "chat_template.json", **self.hub, **LENIENT)
                if path is not None and not tokenizer.chat_template:
                    tokenizer.chat_template = json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"]
            return model, tokenizer


@lru_cache(maxsize=1)
def _read_gguf_config(model_id: str, folder: str, file: str) -> PretrainedConfig:
    """Read the config of a GGUF file, cached since it takes seconds: the vocabulary is parsed too."""
    open_gguf(model_id)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, gguf_file=file)
    config.dtype = torch.float32
    return config


def load_dense(
    model_id: str, options: LoadOptions, folder: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a dense causal LM of a supported family, dequantized. The caller must run `check_model` before pruning.

    With offload `"disk"`, weights that can't be mapped from the checkpoint are written to `folder`. Raises `FFPError`
    if there is no such model, its weights don't match its config, or it can't be pruned.
    """
    source = _Source(model_id, options)
    config, device = source.config, use_device(options.device)
    check_prunable(model_id, config, source.hub)
    check_offload(options.offload, device)
    placement = {}
    if folder and options.offload == "disk":
        own = folder / str(processes.rank())
        source = source.converted(own) if source.converts else source
        if isinstance(find_family(config), Mixture):
            placement = experts_on_disk(empty_model(config), own / "experts")
    model, tokenizer = source.load(dequantize=True, **placement)
    model = offload_layers(model, device, options.offload)
    # Replace the name in a GGUF file's metadata, from which the model can't be loaded.
    model.config._name_or_path = model_id
    # GGUF files lack it, and a run may resume from another place of the weights.
    model.config.architectures = [type(model).__name__]
    return model.eval().requires_grad_(False), tokenizer


def load_any(
    model_id: str, options: LoadOptions, dequantize: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM of any family, dense or pruned. No code of its repository runs, but that of its tokenizer may.

    Quantized weights other than GGUF are only dequantized if `dequantize` is set. Raises `FFPError` if there is no
    such model, its weights don't match its config, or transformers can't load a GGUF file completely.
    """
    source = _Source(model_id, options)
    model, tokenizer = source.load(is_pruned(source.full_config), dequantize)
    model = move(model, use_device(options.device)).eval().requires_grad_(False)
    check_usable(model, tokenizer, model_id)
    if is_quantized(model.config):
        # The first forward pass of a whole model decompresses weights in compressed-tensors; losses run its parts.
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    return model, tokenizer


def load_pruned(model_id: str, options: LoadOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pruned model with its tokenizer, in the dtype of the checkpoint, in host memory.

    Raises `FFPError` if there is no such model in a folder or on the Hub, or it was not pruned by optimum-ffp.
    """
    model, tokenizer = _pruned_source(model_id, replace(options, dtype="auto")).load(pruned=True)
    check_usable(model, tokenizer, model_id)
    return model, tokenizer


def load_tokenizer(model_id: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model of any family. Raises `FFPError` if there is none."""
    return _Source(model_id, options).tokenizer()


def read_any_config(model_id: str, options: LoadOptions) -> PretrainedConfig:
    """Read the config of a causal LM of any family, dense or pruned. No weights are downloaded.

    For a vision-language model, return the config of its language model. Raises `FFPError` if there is no config.
    """
    return _Source(model_id, options).config


def read_pruned_config(model_id: str, options: LoadOptions) -> PretrainedConfig:
    """Read the config of a pruned model. Arguments and errors are those of `load_pruned`."""
    return _pruned_source(model_id, options).config


def _pruned_source(model_id: str, options: LoadOptions) -> _Source:
    if model_id.endswith(".gguf"):
        raise FFPError(f"{model_id} is a GGUF file; use the folder or Hub id that it was exported from")
    source = _Source(model_id, options)
    check_unquantized(model_id, source.config)
    if not is_pruned(source.config) and not prune_record(model_id, **source.hub):
        raise FFPError(f"{model_id} was not pruned by optimum-ffp; pass a pruned model")
    return source


def find_dense(model_id: str, options: LoadOptions) -> tuple[str, LoadOptions, tuple[UnitSize, ...]]:
    """Return the dense model of a pruned model, the options to load it with, and the rows of the policy.

    A dense model is its own, and has no policy. Raises `FFPError` if the record of the pruned model names none on the
    Hub and `options.base_model` is `None`, or layers of a pruned model are to be offloaded.
    """
    record = prune_record(model_id, **options.hub())
    if not record:
        return model_id, options, ()
    if options.offload in ("host", "disk"):
        raise FFPError(f"{model_id} is pruned, and offload {options.offload!r} is for dense models; leave out offload")
    rows = record.policy.units
    if options.base_model is not None:
        return options.base_model, replace(options, revision=None, base_model=None), rows
    # Another model may have the same name.
    if not record.provenance.is_on_hub:
        raise FFPError(
            f"the dense model of {model_id} is not on the Hub according to its record; pass its Hub id, folder or "
            ".gguf file with --base-model (base_model), or with --teacher (teacher) to recover"
        )
    return record.provenance.base_model, replace(options, revision=record.provenance.revision), rows


def pin_commit(model_id: str, options: LoadOptions) -> LoadOptions:
    """Return the options with the revision of a Hub id resolved to its current commit, if it can be determined.

    All files are then loaded from one commit, regardless of later pushes, and records can name it.
    """
    if _Source(model_id, options).is_local:
        return replace(options, revision=None)
    check_reachable(model_id, **options.hub())
    commit = extract_commit_hash(cached_file(model_id, "config.json", **options.hub(), **LENIENT), None)
    return replace(options, revision=commit or options.revision)


def shape_of(model_id: str, options: LoadOptions) -> PreTrainedModel:
    """Return a dense model, or a pruned model's dense model, without weights, in the dtype that it will be loaded in.

    Raises `FFPError` if there is no config, or the model can't be pruned.
    """
    dense_id, dense_options, rows = find_dense(model_id, options)
    config = read_any_config(dense_id, dense_options)
    check_prunable(dense_id, config, dense_options.hub())
    if any(row.unit == "experts" for row in rows):
        raise FFPError(f"{model_id} already had experts pruned; prune the original")
    if rows:
        pruned = read_any_config(model_id, options)
        check_unquantized(model_id, pruned)
        config.pruned_units = rows
        if (left := pruned.vocab_size) < config.vocab_size:
            config.trimmed_vocab_size = left
    return empty_model(config, options.torch_dtype)


def empty_model(config: PretrainedConfig, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Return a dense or pruned causal LM without weights, on the meta device, in a dtype or by `"auto"` the config's.

    Raises `FFPError` if there is no such model.
    """
    if not isinstance(dtype, torch.dtype):
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    config = copy.deepcopy(config)
    with loading_errors(config._name_or_path or "the model"), torch.device("meta"):
        if is_pruned(config):
            return move(pruned_model_class(find_family(config))(config), dtype)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def resolve_device(device: str | None) -> torch.device:
    """Return the device of the given name, by default the accelerator if available, otherwise the CPU.

    An accelerator always has an index, by default that of this process, since other threads have other defaults.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        resolved = torch.device(device or accelerator or "cpu")
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise FFPError(f"device {device!r} can't be used here: {one_line(error)}") from None
    if accelerator is not None and resolved.type == accelerator.type and resolved.index is None:
        return torch.device(resolved.type, torch.accelerator.current_device_index())
    return resolved


def use_device(device: str | None) -> torch.device:
    """Return the device of the given name, and make it the current device."""
    resolved = resolve_device(device)
    if resolved.type != "cpu":
        torch.accelerator.set_device_index(resolved.index)
    return resolved


def loading_errors(model_id: str, token: str | None = None) -> AbstractContextManager[None]:
    """Convert any error of loading a model to a one-line `FFPError`, without the token."""

    def describe(error: Exception) -> str:
        reason = one_line(error, token)
        if "backend tokenizer" in str(error):
            reason = NO_TOKENIZER
        if "custom code" in reason:
            reason += "; give --trust-remote-code (trust_remote_code=True) if you trust it"
        if "safetensors" in str(error) and ("no file named" in reason or "does not appear" in reason):
            reason = "it has no safetensors, and pickled weights can run code; convert it with transformers first"
        return f"{model_id} can't be loaded as a causal LM: {reason}"

    return convert_errors(describe)

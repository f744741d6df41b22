"""The dense model and its tokenizer, from a Hub id, a folder or a GGUF file, or one clear reason why not."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from ..errors import FFPError
from ..hub.upload import one_line
from ..hub.validate_checkpoint import QUIETLY, check_checkpoint
from .auto import FFPModelForCausalLM, is_pruned, load_whole
from .families import find_family


if TYPE_CHECKING:
    from gguf import GGUFReader

# A pickle can run code, so weights that are pickled are not read.
SAFELY = {"use_safetensors": True, "trust_remote_code": False}
NO_TOKENIZER = (
    "it has no tokenizer; copy tokenizer.json and tokenizer_config.json of the model that it was made from into its "
    "folder"
)
FIRST_TOKENS = 8
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LoadOptions:
    """How to load the dense model; names as in transformers.

    Attributes:
        device: Where to put the model (`"cpu"`, `"cuda"`, `"cuda:0"`, `"mps"`); the accelerator if there is one.
        dtype: `"auto"` for the checkpoint's, or a torch type or its name.
        device_map: For accelerate; excludes `device`.
        trust_remote_code: Whether code of the tokenizer's repository may run.
        revision, token, cache_dir: Of the Hub.
    """

    device: str | None = None
    dtype: str | torch.dtype = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None

    def hub(self) -> dict[str, Any]:
        """Those of them that `huggingface_hub` takes, where they are given."""
        options = {"revision": self.revision, "token": self.token, "cache_dir": self.cache_dir}
        return {name: value for name, value in options.items() if value is not None}


def load_dense(model_id: str, options: LoadOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a dense causal LM of a supported family, for `check_model` to look at before it is pruned.

    Args:
        model_id: Hub id, folder, or a `.gguf` file, which is dequantised.
        options: Device, type and Hub options.

    Raises:
        FFPError: If there is no such model, or it can't be pruned: an unsupported family, a checkpoint that is
            already pruned or quantised, one that lacks weights or has others than its config says, or one that needs
            modelling code of its own.
    """
    reader = _open_gguf(model_id)
    read_model_config(model_id, options)
    placement = {"device_map": options.device_map} if options.device_map else {}
    model, tokenizer = _load(AutoModelForCausalLM, model_id, options, reader, options.trust_remote_code, **placement)
    if not options.device_map:
        model = model.to(resolve_device(options.device))
    # A GGUF file's own name for the model is no place to load it from.
    model.config._name_or_path = model_id
    return model.eval().requires_grad_(False), tokenizer


def pin_commit(model_id: str, options: LoadOptions) -> LoadOptions:
    """The same options with the commit that the revision of a Hub id stands for now, if it is to be had.

    What is loaded with them is of one commit, whatever is pushed meanwhile, and a record can name it.
    """
    source, extra = _locate(model_id)
    if extra or Path(source).is_dir():
        return replace(options, revision=None)
    commit = extract_commit_hash(cached_file(source, "config.json", **options.hub(), **QUIETLY), None)
    return replace(options, revision=commit or options.revision)


def load_any(
    model_id: str, options: LoadOptions, gguf: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM of any family, dense or pruned by us, ready to evaluate. No code of its repository runs.

    Args:
        model_id: Hub id or folder.
        options: Device, type and Hub options.
        gguf: Whether it may be a `.gguf` file of a dense architecture, which is dequantised.

    Raises:
        FFPError: If there is no such model, its weights aren't those that its config says, or transformers doesn't
            read all that a GGUF file says.
    """
    source, extra = _locate(model_id)
    if extra and not gguf:
        raise FFPError(f"{model_id} is a GGUF file already; give a folder or a Hub id")
    reader = _open_gguf(model_id)
    with explained(model_id, options.token):
        if not extra:
            check_checkpoint(source, **options.hub())
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options.hub(), **extra)
    kind = FFPModelForCausalLM if is_pruned(config) else AutoModelForCausalLM
    model, tokenizer = _load(kind, model_id, options, reader, trust_remote_code=False)
    model = model.to(resolve_device(options.device))
    _check_usable(model, tokenizer, model_id)
    return model.eval().requires_grad_(False), tokenizer


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_id: str) -> None:
    """Checks a dense model that is to be pruned, whoever has loaded it.

    Args:
        model: The dense model.
        tokenizer: Its tokenizer.
        model_id: What to call it in a message.

    Raises:
        FFPError: If it isn't a causal LM of transformers as it was loaded, its family isn't supported, it is pruned or
            quantised already, a weight isn't finite or isn't there, or its tokenizer belongs to another model.
    """
    known = isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False)
    if not known or model.get_output_embeddings() is None:
        raise FFPError(
            f"{model_id} is of type {type(model).__name__}; give a model as AutoModelForCausalLM.from_pretrained "
            "returns it, before torch.compile and with adapters merged"
        )
    _check_prunable(model_id, model.config)
    offloaded = sum(parameter.numel() for parameter in model.parameters() if parameter.is_meta)
    if offloaded:
        raise FFPError(
            f"{offloaded:,} of {model.num_parameters():,} parameters are offloaded, and what is not there can't be "
            "sorted and pruned; use more devices, dtype bfloat16, or device cpu"
        )
    _check_usable(model, tokenizer, model_id)
    with torch.no_grad():
        # Start tokens, which have the largest activations, are mostly among them.
        logits = model(torch.arange(FIRST_TOKENS, device=model.device)[None]).logits
    if not logits.isfinite().all():
        raise FFPError(
            f"{model_id} computes what is infinite or no number in {_name(model.dtype)}: its weights are too large or "
            "damaged; try dtype bfloat16 or float32, or download it anew"
        )


def read_model_config(model_id: str, options: LoadOptions) -> PretrainedConfig:
    """The config of a dense model that can be pruned.

    Args:
        model_id: Hub id, folder, or `.gguf` file.
        options: Hub options.

    Raises:
        FFPError: If there is none, or the model can't be pruned.
    """
    source, extra = _locate(model_id)
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    with explained(model_id, options.token):
        if not extra:
            check_checkpoint(source, **options.hub())
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options.hub(), **extra)
    _check_prunable(model_id, config)
    config._name_or_path = model_id
    if extra:
        config.dtype = torch.float32
    return config


def _load(
    kind: type,
    model_id: str,
    options: LoadOptions,
    reader: "GGUFReader | None",
    trust_remote_code: bool,
    **placement: str,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source, extra = _locate(model_id)
    weights = _weight_options(options, extra)
    with explained(model_id, options.token):
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **options.hub(), **extra
        )
        # Of some families transformers makes an empty one where there is none.
        _largest_token(tokenizer, model_id)
        if reader is None:
            return load_whole(kind, source, **placement, **weights)[0], tokenizer
        model = kind.from_pretrained(source, **placement, **weights)
    _check_read_whole(model_id, reader, model)
    return model, tokenizer


def _weight_options(options: LoadOptions, extra: dict[str, str]) -> dict[str, Any]:
    """Options of `from_pretrained`: the weights of a GGUF file are dequantised, others come from safetensors."""
    dtype = resolve_dtype(options.dtype)
    if not extra:
        return options.hub() | SAFELY | {"dtype": dtype}
    from transformers import GgufConfig

    dtype = torch.float32 if dtype == "auto" else dtype
    return options.hub() | extra | {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}


def _open_gguf(model_id: str) -> "GGUFReader | None":
    """What a GGUF file says of itself, or `None` if the model is none."""
    if not _locate(model_id)[1]:
        return None
    try:
        from gguf import GGUFReader
    except ImportError:
        raise FFPError("GGUF files need the gguf package: pip install gguf") from None
    try:
        reader = GGUFReader(Path(model_id).expanduser())
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # Whatever its parser runs into in a file that is broken or something else.
        raise FFPError(f"{model_id} is no GGUF file that can be read: {one_line(error)}") from None
    if architecture in ("deci", "openelm"):
        raise FFPError(
            f"{model_id} has llama.cpp's architecture {architecture}, whose layers differ in size and which "
            "transformers doesn't read; give the folder that it was exported from"
        )
    return reader


def _check_read_whole(model_id: str, reader: "GGUFReader", model: PreTrainedModel) -> None:
    """Transformers skips tensors that it has no name for (biases, factors of a rotary embedding) without a word."""
    held, read = sum(int(tensor.n_elements) for tensor in reader.tensors), model.num_parameters()
    scaled = [name for name in reader.fields if name.endswith("rope.scaling.type")]
    if held != read or any(reader.fields[name].contents() != "none" for name in scaled):
        found = f"{held:,} weights for a model of {read:,}" if held != read else "a scaled rotary embedding"
        raise FFPError(
            f"{model_id} has {found}: transformers doesn't read this GGUF file whole and would run another model; "
            "give the folder or Hub id that it was made from"
        )


def _check_usable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_id: str) -> None:
    for name, parameter in model.named_parameters():
        # Quantised models have others, of which there is no norm.
        known = parameter.dtype in FLOATS and parameter.numel() and not parameter.is_meta
        if known and not torch.linalg.vector_norm(parameter.detach(), math.inf).isfinite():
            raise FFPError(
                f"{name} of {model_id} holds values that are infinite or no numbers in {_name(parameter.dtype)}; if "
                "that is float16, try dtype bfloat16 or float32, otherwise download the model anew"
            )
    largest, rows = _largest_token(tokenizer, model_id), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise FFPError(
            f"the tokenizer of {model_id} has tokens up to number {largest}, and the embedding of the model {rows} "
            "rows; give a model and a tokenizer that belong together"
        )


def _largest_token(tokenizer: PreTrainedTokenizerBase, model_id: str) -> int:
    # Special tokens are often added for training and come in no text.
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    in_text = set(tokenizer.get_vocab().values()) - special
    if not in_text:
        raise FFPError(f"{model_id} can't be used: {NO_TOKENIZER}")
    return max(in_text)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def resolve_device(device: str | None) -> torch.device:
    """The device of that name, or the accelerator if there is one, or the CPU."""
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise FFPError(f"device {device!r} can't be used here: {one_line(error)}") from None
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """The torch type of that name, or `"auto"`."""
    resolved = dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if resolved != "auto" and not (isinstance(resolved, torch.dtype) and resolved.is_floating_point):
        raise FFPError(f"dtype {dtype!r} is not known; choose from auto, float32, bfloat16, float16")
    return resolved


def _locate(model_id: str) -> tuple[str, dict[str, str]]:
    path = Path(model_id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FFPError(f"there is no file {model_id}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        # That an adapter is none of a model's folders is for check_checkpoint to say.
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FFPError(f"{model_id} is a folder without config.json; give one that save_pretrained has written")
        return str(path), {}
    if path.is_file():
        raise FFPError(f"{model_id} is a file; give the folder of the model, {path.parent}, or a .gguf file")
    if model_id.startswith((".", "/", "~", "\\")) or model_id.count("/") > 1 or not model_id.strip():
        raise FFPError(f"there is no folder {model_id!r}; give a Hub id, a folder with config.json, or a .gguf file")
    return model_id, {}


def _check_prunable(model_id: str, config: Any) -> None:
    if is_pruned(config):
        raise FFPError(f"{model_id} is already pruned; prune the dense model that it was made from")
    find_family(config)
    if getattr(config, "auto_map", None):
        raise FFPError(f"{model_id} brings modelling code of its own, which can't be pruned; use one that needs none")
    # A GGUF file has a quantisation too, but one that is undone while loading.
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        raise FFPError(f"{model_id} is quantised; prune the model in full precision, then quantise the result")


@contextmanager
def explained(model_id: str, token: str | None) -> Iterator[None]:
    """Whatever goes wrong while a model is loaded becomes an `FFPError` of one line, without the token."""
    try:
        yield
    except FFPError:
        raise
    # A broken config makes transformers fail in as many ways as there are ways to read it.
    except Exception as error:
        reason = one_line(error, token)
        if constants.HF_HUB_OFFLINE and "offline" in str(error).lower():
            reason = "it is not in the local cache, and offline mode is on (HF_HUB_OFFLINE=1)"
        if "backend tokenizer" in str(error):
            reason = NO_TOKENIZER
        if "safetensors" in str(error) and ("no file named" in reason or "does not appear" in reason):
            reason = (
                "it has no safetensors, and pickled weights, which can run code, are not read; convert it first: "
                "load it with transformers and call save_pretrained"
            )
        raise FFPError(f"{model_id} can't be loaded as a causal LM: {reason}") from None

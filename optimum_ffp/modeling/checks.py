"""Checks that a model can be evaluated or pruned."""

from typing import Any

import torch
from packaging.version import Version
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from ..errors import FFPError
from ..hub.record import prune_record
from ..utils.lm_head import embedding_of
from ..utils.precision import dtype_name, is_quantized
from .auto import is_pruned
from .families import find_family


NO_TOKENIZER = (
    "it has no tokenizer; copy tokenizer.json and tokenizer_config.json of the original model into its folder"
)
# Quantizations that transformers undoes while it loads a checkpoint, on any device. MXFP4 is that of gpt-oss alone.
# Before 5.23, modules that were in compressed-tensors round activations even if they are dequantized.
DEQUANTIZED = ("fp8", "compressed-tensors") if Version(__version__) >= Version("5.23") else ("fp8",)
# A window of the first token ids, which usually include the start token, which has the largest activations.
FIRST_TOKENS = torch.arange(9)[None]


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_id: str) -> None:
    """Raise `FFPError` if a dense model can't be pruned, without running it (see `check_losses`).

    It must be an unmodified causal LM of transformers, of a supported family, with its own tokenizer.
    """
    is_plain = isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False)
    if not is_plain or model.get_output_embeddings() is None:
        raise FFPError(
            f"{model_id} is of type {type(model).__name__}; pass a model as returned by "
            "AutoModelForCausalLM.from_pretrained, before torch.compile and with adapters merged"
        )
    check_unquantized(model_id, model.config)
    check_prunable(model_id, model.config)
    check_usable(model, tokenizer, model_id)


def check_losses(losses: torch.Tensor, model: PreTrainedModel, model_id: str) -> None:
    """Raise `FFPError` if the losses of a model on `FIRST_TOKENS` are not finite."""
    if not losses.isfinite().all():
        raise FFPError(
            f"{model_id} computes infinite or NaN logits in {dtype_name(model.dtype)}: its weights are too large or "
            "corrupt; try dtype bfloat16 or float32, or download it again"
        )


def check_prunable(model_id: str, config: PretrainedConfig, hub: dict[str, Any] | None = None) -> None:
    """Raise `FFPError` with the reason if the model of a config can't be pruned.

    Pruned models with standard modeling code are recognized by the record in their folder or repository, which is read
    with the options `hub` of `huggingface_hub`; models in memory have none.
    """
    if is_pruned(config) or (hub is not None and prune_record(model_id, **hub)):
        raise FFPError(
            f"{model_id} is already pruned; pass its dense model, or the folder of the pruned one with its "
            "ffp_config.json to prune that further"
        )
    find_family(config)
    if not _is_native(config):
        raise FFPError(
            f"{model_id} needs custom code, which can't be pruned; use a model with native support in transformers"
        )
    check_dequantizable(model_id, config)


def check_dequantizable(model_id: str, config: PretrainedConfig) -> None:
    """Raise `FFPError` if the weights of a checkpoint are quantized, and can't be dequantized as they are loaded."""
    if is_quantized(config) and (method := config.quantization_config.get("quant_method")) not in DEQUANTIZED:
        raise FFPError(
            f"{model_id} is quantized with {method}, and only {', '.join(DEQUANTIZED)} and GGUF are dequantized on "
            "loading; use the original model in full precision, and quantize the result"
        )


def check_unquantized(model_id: str, config: PretrainedConfig) -> None:
    """Raise `FFPError` if a model is quantized, and can neither be trained nor converted."""
    if is_quantized(config):
        raise FFPError(f"{model_id} is quantized; use the model in full precision that it was quantized from")


def _is_native(config: PretrainedConfig) -> bool:
    """Return whether transformers has all classes in `auto_map`, so that no custom code is needed."""
    native = {type(config).__name__}
    native |= {names.get(config.model_type) for names in (MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    classes = {auto: entry.rpartition(".")[2] for auto, entry in (getattr(config, "auto_map", None) or {}).items()}
    return all(auto == "AutoTokenizer" or name in native for auto, name in classes.items())


def check_usable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_id: str) -> None:
    """Raise `FFPError` if the tokenizer has tokens without an embedding in the model."""
    largest, rows = largest_token(tokenizer, model_id), embedding_of(model).weight.shape[0]
    if largest >= rows:
        raise FFPError(
            f"the tokenizer of {model_id} has token ids up to {largest}, but the model's embedding has {rows} rows; "
            "use the tokenizer of the model"
        )


def largest_token(tokenizer: PreTrainedTokenizerBase, model_id: str) -> int:
    """Return the highest token id that can occur in text.

    Raises `FFPError` if the vocabulary is empty, as transformers leaves it for some families without a tokenizer.
    """
    # Special tokens are often added for training and do not occur in text.
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    in_text = set(tokenizer.get_vocab().values()) - special
    if not in_text:
        raise FFPError(f"{model_id} can't be used: {NO_TOKENIZER}")
    return max(in_text)

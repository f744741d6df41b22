"""The language model of a checkpoint that also takes images."""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .families import MULTIMODAL


# Options that a checkpoint has for all parts together.
COMMON = ("dtype", "quantization_config", "auto_map", "_name_or_path")


def takes_images(config: PretrainedConfig) -> bool:
    """Return whether a model takes images and has a language model that can be used alone."""
    return config.model_type in MULTIMODAL


def language_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of a model's language model, which is `config` itself unless the model takes images.

    Its `language_model_of` is the type of the whole model. `tie_word_embeddings` stands in one config or the other, or
    in none; only the loaded model tells (`language_model`).
    """
    if not takes_images(config):
        return config
    found = copy.deepcopy(config.get_text_config(decoder=True))
    for name in COMMON:
        if getattr(config, name, None) is not None:
            setattr(found, name, copy.deepcopy(getattr(config, name)))
    found.tie_word_embeddings = all(getattr(one, "tie_word_embeddings", False) for one in (config, found))
    found.language_model_of = config.model_type
    return found


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the language model of a model that takes images, as a causal LM with the same weights.

    Args:
        model: The model. It is not to be used any more.
    """
    config, decoder, head = language_config(model.config), model.get_decoder(), model.get_output_embeddings()
    config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(config)
    # Modules of the decoder read its own config.
    for name in (*COMMON, "tie_word_embeddings", "language_model_of"):
        if hasattr(config, name):
            setattr(decoder.config, name, getattr(config, name))
    found.config = decoder.config
    setattr(found, found.base_model_prefix, decoder)
    found.set_output_embeddings(head)
    found.generation_config = model.generation_config
    return found

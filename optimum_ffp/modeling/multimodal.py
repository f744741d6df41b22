"""The language model of a checkpoint that also takes images."""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .families import MULTIMODAL


# Options that a checkpoint has for all parts together.
COMMON = ("dtype", "tie_word_embeddings", "quantization_config", "auto_map")


def takes_images(config: PretrainedConfig) -> bool:
    """Return whether a model takes images and has a language model that can be used alone."""
    return config.model_type in MULTIMODAL


def language_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of a model's language model, which is `config` itself unless the model takes images."""
    if not takes_images(config):
        return config
    found = copy.deepcopy(config.get_text_config(decoder=True))
    for name in COMMON:
        if getattr(config, name, None) is not None:
            setattr(found, name, copy.deepcopy(getattr(config, name)))
    return found


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the language model of a model that takes images, as a causal LM with the same weights.

    Args:
        model: The model. It is not to be used any more.
    """
    config, decoder = language_config(model.config), model.get_decoder()
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(config)
    # Modules of the decoder read its own config.
    for name in COMMON:
        if hasattr(config, name):
            setattr(decoder.config, name, getattr(config, name))
    found.config = decoder.config
    setattr(found, found.base_model_prefix, decoder)
    found.set_output_embeddings(model.get_output_embeddings())
    found.generation_config = model.generation_config
    found.config._name_or_path = found.name_or_path = model.name_or_path
    return found

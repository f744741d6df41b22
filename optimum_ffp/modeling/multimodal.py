"""Language models of vision-language checkpoints."""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..utils.lm_head import embedding_of, head_of
from .families import MULTIMODAL


# Options that a checkpoint sets for all parts together.
COMMON = ("dtype", "quantization_config", "auto_map", "_name_or_path")


def language_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of a model's language model, which is `config` itself for text-only models.

    Its `language_model_of` is the type of the vision-language model. Either config, or neither, may have
    `tie_word_embeddings`; the correct value is only known from the loaded model (`language_model`).
    """
    if config.model_type not in MULTIMODAL:
        return config
    text_config = copy.deepcopy(config.get_text_config(decoder=True))
    for name in COMMON:
        if getattr(config, name, None) is not None:
            setattr(text_config, name, copy.deepcopy(getattr(config, name)))
    configs = config, text_config
    text_config.tie_word_embeddings = all(getattr(part, "tie_word_embeddings", False) for part in configs)
    text_config.language_model_of = config.model_type
    return text_config


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the language model of a vision-language model, which must not be used afterwards, as a causal LM."""
    config, decoder, head = language_config(model.config), model.get_decoder(), head_of(model)
    config.tie_word_embeddings = head.weight is embedding_of(model).weight
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
    # The decoder's modules read the decoder's config.
    for name in (*COMMON, "tie_word_embeddings", "language_model_of"):
        if hasattr(config, name):
            setattr(decoder.config, name, getattr(config, name))
    causal_lm.config = decoder.config
    setattr(causal_lm, causal_lm.base_model_prefix, decoder)
    causal_lm.set_output_embeddings(head)
    causal_lm.generation_config = model.generation_config
    return causal_lm

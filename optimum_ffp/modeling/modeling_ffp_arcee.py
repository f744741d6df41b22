"""Arcee whose layers differ in heads and FFN width. A checkpoint pruned by optimum-ffp carries this file.

The sizes of every layer stand in `config.json` under `per_layer_config`, transformers' own schema. Weight names are
those of Arcee.
"""

import copy

from transformers import PretrainedConfig, __version__
from transformers.models.arcee.modeling_arcee import ArceeDecoderLayer, ArceeForCausalLM, ArceeModel
from transformers.models.auto import modeling_auto


def earlier_rope_names(config: PretrainedConfig) -> dict:
    """The RoPE settings under the names that transformers before 5 reads; 5 has them in `rope_parameters`."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return {}
    rope = dict(parameters.get("full_attention", parameters))
    names = {"rope_theta": rope.pop("rope_theta")}
    if "partial_rotary_factor" in rope:
        names["partial_rotary_factor"] = names["rotary_pct"] = rope.pop("partial_rotary_factor")
    if "sliding_attention" in parameters:
        names["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    names["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    return names


def get_layer_config(config: PretrainedConfig, layer_idx: int) -> PretrainedConfig:
    """The config of one layer: the global one with that layer's overrides."""
    overrides = config.per_layer_config
    if not isinstance(overrides, dict):
        return overrides[layer_idx]
    # Before 5.15 transformers keeps the JSON as it was read.
    layer_config = copy.copy(config)
    for name, value in {int(index): values for index, values in overrides.items()}.get(layer_idx, {}).items():
        setattr(layer_config, name, value)
    return layer_config


class FFPArceeModel(ArceeModel):
    """The decoder without a head; every layer has sizes of its own."""

    def __init__(self, config: PretrainedConfig):
        if int(__version__.split(".")[0]) < 5:
            config.update(earlier_rope_names(config))
        super().__init__(config)
        for layer_idx in range(config.num_hidden_layers):
            layer = ArceeDecoderLayer(get_layer_config(config, layer_idx), layer_idx)
            # The layer's config is a copy, which would not follow a later set_attn_implementation.
            layer.self_attn.config = config
            self.layers[layer_idx] = layer
        self.post_init()


class FFPArceeForCausalLM(ArceeForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.model = FFPArceeModel(config)
        self.post_init()


FFPArceeModel.register_for_auto_class("AutoModel")
FFPArceeForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Otherwise a pipeline logs that it doesn't know the class, with the names of all that it does. Should another version
# of transformers have no such names, a checkpoint must still load.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_arcee"] = FFPArceeForCausalLM.__name__

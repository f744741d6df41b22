"""OPT whose layers differ in heads and FFN width. A checkpoint pruned by optimum-ffp carries this file.

The sizes of every layer stand in `config.json` under `per_layer_config`, transformers' own schema. Weight names are
those of OPT.
"""

import copy

from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTForCausalLM, OPTModel


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


def shrink_layer(layer: OPTDecoderLayer, config: PretrainedConfig, heads: int, ffn_dim: int) -> None:
    """Gives a dense layer fewer heads and FFN channels.

    OPT derives its head dimension from the number of heads and would refuse to build the layer directly.
    """
    attention, hidden, bias = layer.self_attn, config.hidden_size, config.enable_bias
    width = heads * attention.head_dim
    attention.num_heads = heads
    attention.q_proj = nn.Linear(hidden, width, bias=bias)
    attention.k_proj = nn.Linear(hidden, width, bias=bias)
    attention.v_proj = nn.Linear(hidden, width, bias=bias)
    attention.out_proj = nn.Linear(width, hidden, bias=bias)
    layer.fc1 = nn.Linear(hidden, ffn_dim, bias=bias)
    layer.fc2 = nn.Linear(ffn_dim, hidden, bias=bias)


class FFPOPTModel(OPTModel):
    """The decoder without a head; every layer has sizes of its own."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.decoder.layers):
            layer_config = get_layer_config(config, layer_idx)
            shrink_layer(layer, config, layer_config.num_attention_heads, layer_config.ffn_dim)
        self.post_init()


class FFPOPTForCausalLM(OPTForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.model = FFPOPTModel(config)
        self.post_init()


FFPOPTModel.register_for_auto_class("AutoModel")
FFPOPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Otherwise a pipeline logs that it doesn't know the class, with the names of all that it does. Should another version
# of transformers have no such names, a checkpoint must still load.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_opt"] = FFPOPTForCausalLM.__name__

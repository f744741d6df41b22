"""GPT-NeoX whose layers differ in heads and FFN width. A checkpoint pruned by optimum-ffp carries this file.

The sizes of every layer stand in `config.json` under `per_layer_config`, transformers' own schema. Weight names are
those of GPT-NeoX.
"""

import copy

from torch import nn
from transformers import PretrainedConfig, __version__
from transformers.models.auto import modeling_auto
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer, GPTNeoXModel


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
    # What 5 reads beside a `rope_scaling` that earlier versions have saved.
    names["rotary_emb_base"] = names["rope_theta"]
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


def shrink_layer(layer: GPTNeoXLayer, config: PretrainedConfig, heads: int, width: int) -> None:
    """Gives a dense layer fewer heads and FFN channels.

    GPT-NeoX derives its head dimension from the number of heads and would refuse to build the layer directly.
    """
    attention, hidden, bias = layer.attention, config.hidden_size, config.attention_bias
    attention.query_key_value = nn.Linear(hidden, 3 * heads * attention.head_size, bias=bias)
    attention.dense = nn.Linear(heads * attention.head_size, hidden, bias=bias)
    layer.mlp.dense_h_to_4h = nn.Linear(hidden, width)
    layer.mlp.dense_4h_to_h = nn.Linear(width, hidden)


class FFPGPTNeoXModel(GPTNeoXModel):
    """The decoder without a head; every layer has sizes of its own."""

    def __init__(self, config: PretrainedConfig):
        if int(__version__.split(".")[0]) < 5:
            config.update(earlier_rope_names(config))
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):
            layer_config = get_layer_config(config, layer_idx)
            shrink_layer(layer, config, layer_config.num_attention_heads, layer_config.intermediate_size)
        self.post_init()


class FFPGPTNeoXForCausalLM(GPTNeoXForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.gpt_neox = FFPGPTNeoXModel(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As for every model; to transformers before 5 the head has another name, which it saves too."""
        earlier = int(__version__.split(".")[0]) < 5
        kwargs.setdefault("key_mapping", {r"^lm_head\.": "embed_out."} if earlier else {r"^embed_out\.": "lm_head."})
        return super().from_pretrained(*args, **kwargs)


FFPGPTNeoXModel.register_for_auto_class("AutoModel")
FFPGPTNeoXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Otherwise a pipeline logs that it doesn't know the class, with the names of all that it does. Should another version
# of transformers have no such names, a checkpoint must still load.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_gpt_neox"] = FFPGPTNeoXForCausalLM.__name__

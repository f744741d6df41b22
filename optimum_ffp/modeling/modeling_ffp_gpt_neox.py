"""GPTNeoX with different numbers of heads and FFN widths per layer. Part of checkpoints pruned by optimum-ffp.

The sizes of every layer are in `config.json` under `per_layer_config`, the schema of transformers. Weight names are
those of GPTNeoX.
"""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig, __version__
from transformers.models.auto import modeling_auto
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer, GPTNeoXModel


def legacy_rope_config(config: PretrainedConfig) -> dict:
    """Return the RoPE settings as named by transformers before 5, which has `rope_parameters`."""
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
    # Transformers 5 reads this along with a `rope_scaling` saved by earlier versions.
    names["rotary_emb_base"] = names["rope_theta"]
    return names


def get_layer_config(config: PretrainedConfig, layer_idx: int) -> PretrainedConfig:
    """Return the config of a layer: the global config with the overrides for that layer."""
    overrides = config.per_layer_config
    if not isinstance(overrides, dict):
        return overrides[layer_idx]
    # Before 5.15, transformers leaves the parsed JSON unchanged.
    layer_config = copy.copy(config)
    for name, value in {int(index): values for index, values in overrides.items()}.get(layer_idx, {}).items():
        setattr(layer_config, name, value)
    return layer_config


class Removed(nn.Module):
    """In place of the attention or the FFN of a layer that has none."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return zeros and, as only attention gets further arguments, its missing weights."""
        # Not `zeros_like`, by which norms would get no gradient.
        zeros = 0 * hidden_states
        return (zeros, None) if kwargs else zeros


def shrink_layer(layer: GPTNeoXLayer, config: PretrainedConfig, heads: int, width: int) -> None:
    """Reduce the numbers of heads and FFN channels of a dense layer.

    GPT-NeoX derives its head dimension from the number of heads and would refuse to build the layer directly.
    """
    attention, hidden, bias = layer.attention, config.hidden_size, config.attention_bias
    attention.query_key_value = nn.Linear(hidden, 3 * heads * attention.head_size, bias=bias)
    attention.dense = nn.Linear(heads * attention.head_size, hidden, bias=bias)
    layer.mlp.dense_h_to_4h = nn.Linear(hidden, width)
    layer.mlp.dense_4h_to_h = nn.Linear(width, hidden)


class FFPGPTNeoXModel(GPTNeoXModel):
    """The decoder without a head, with sizes per layer."""

    def __init__(self, config: PretrainedConfig):
        if int(__version__.split(".")[0]) < 5:
            config.update(legacy_rope_config(config))
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):
            layer_config = get_layer_config(config, layer_idx)
            shrink_layer(layer, config, layer_config.num_attention_heads, layer_config.intermediate_size)
            skip = getattr(layer_config, "skip", [])
            if "attention" in skip:
                layer.attention = Removed()
                layer.input_layernorm = nn.Identity()
            if "mlp" in skip:
                layer.mlp = Removed()
                layer.post_attention_layernorm = nn.Identity()
        self.post_init()


class FFPGPTNeoXForCausalLM(GPTNeoXForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.gpt_neox = FFPGPTNeoXModel(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a model, renaming the head, which has another name in transformers before 5."""
        earlier = int(__version__.split(".")[0]) < 5
        kwargs.setdefault("key_mapping", {r"^lm_head\.": "embed_out."} if earlier else {r"^embed_out\.": "lm_head."})
        return super().from_pretrained(*args, **kwargs)


FFPGPTNeoXModel.register_for_auto_class("AutoModel")
FFPGPTNeoXForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Without an entry in this mapping, which not every version of transformers may have, pipelines log an error.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_gpt_neox"] = FFPGPTNeoXForCausalLM.__name__

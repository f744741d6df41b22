"""OPT with different numbers of heads and FFN widths per layer. Part of checkpoints pruned by optimum-ffp.

The sizes of every layer are in `config.json` under `per_layer_config`, the schema of transformers. Weight names are
those of OPT.
"""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTForCausalLM, OPTModel


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


def shrink_layer(layer: OPTDecoderLayer, config: PretrainedConfig, heads: int, ffn_dim: int) -> None:
    """Reduce the numbers of heads and FFN channels of a dense layer.

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
    """The decoder without a head, with sizes per layer."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.decoder.layers):
            layer_config = get_layer_config(config, layer_idx)
            shrink_layer(layer, config, layer_config.num_attention_heads, layer_config.ffn_dim)
            skip = getattr(layer_config, "skip", [])
            if "attention" in skip:
                layer.self_attn = Removed()
            if "mlp" in skip:
                layer.fc1 = Removed()
                layer.fc2 = nn.Identity()
        self.post_init()


class FFPOPTForCausalLM(OPTForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.model = FFPOPTModel(config)
        self.post_init()


FFPOPTModel.register_for_auto_class("AutoModel")
FFPOPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Without an entry in this mapping, which not every version of transformers may have, pipelines log an error.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_opt"] = FFPOPTForCausalLM.__name__

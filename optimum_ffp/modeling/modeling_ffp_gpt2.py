"""GPT2 with different numbers of heads and FFN widths per layer. Part of checkpoints pruned by optimum-ffp.

The sizes of every layer are in `config.json` under `per_layer_config`, the schema of transformers. Weight names are
those of GPT2.
"""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2LMHeadModel, GPT2Model
from transformers.pytorch_utils import Conv1D


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


def shrink_layer(layer: GPT2Block, config: PretrainedConfig, heads: int, width: int) -> None:
    """Reduce the numbers of heads and FFN channels of a dense layer.

    GPT-2 derives its head dimension from the number of heads and would refuse to build the layer directly.
    """
    attention, hidden = layer.attn, config.hidden_size
    features = heads * attention.head_dim
    attention.num_heads, attention.split_size = heads, features
    attention.c_attn = Conv1D(3 * features, hidden)
    attention.c_proj = Conv1D(hidden, features)
    layer.mlp.c_fc = Conv1D(width, hidden)
    layer.mlp.c_proj = Conv1D(hidden, width)


class FFPGPT2Model(GPT2Model):
    """The decoder without a head, with sizes per layer."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.h):
            layer_config = get_layer_config(config, layer_idx)
            shrink_layer(layer, config, layer_config.num_attention_heads, layer_config.n_inner)
            skip = getattr(layer_config, "skip", [])
            if "attention" in skip:
                layer.attn = Removed()
                layer.ln_1 = nn.Identity()
            if "mlp" in skip:
                layer.mlp = Removed()
                layer.ln_2 = nn.Identity()
        self.post_init()


class FFPGPT2ForCausalLM(GPT2LMHeadModel):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.transformer = FFPGPT2Model(config)
        self.post_init()


FFPGPT2Model.register_for_auto_class("AutoModel")
FFPGPT2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Without an entry in this mapping, which not every version of transformers may have, pipelines log an error.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_gpt2"] = FFPGPT2ForCausalLM.__name__

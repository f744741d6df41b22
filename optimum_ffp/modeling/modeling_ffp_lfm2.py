"""Lfm2 with different numbers of heads and FFN widths per layer. Part of checkpoints pruned by optimum-ffp.

The sizes of every layer are in `config.json` under `per_layer_config`, the schema of transformers. Weight names are
those of Lfm2.
"""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig, __version__
from transformers.models.auto import modeling_auto
from transformers.models.lfm2.modeling_lfm2 import Lfm2DecoderLayer, Lfm2ForCausalLM, Lfm2Model


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


class FFPLfm2Model(Lfm2Model):
    """The decoder without a head, with sizes per layer."""

    def __init__(self, config: PretrainedConfig):
        if int(__version__.split(".")[0]) < 5:
            config.update(legacy_rope_config(config))
        super().__init__(config)
        for layer_idx in range(config.num_hidden_layers):
            layer_config = get_layer_config(config, layer_idx)
            layer = Lfm2DecoderLayer(layer_config, layer_idx)
            if layer.is_attention_layer:
                # The layer's config is a copy, which set_attn_implementation would not update.
                layer.self_attn.config = config
            skip = getattr(layer_config, "skip", [])
            if "attention" in skip:
                layer.self_attn = Removed()
                layer.operator_norm = nn.Identity()
            if "mlp" in skip:
                layer.feed_forward = Removed()
                layer.ffn_norm = nn.Identity()
            self.layers[layer_idx] = layer
        self.post_init()


class FFPLfm2ForCausalLM(Lfm2ForCausalLM):
    """The decoder with its language modeling head."""

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.model = FFPLfm2Model(config)
        self.post_init()


FFPLfm2Model.register_for_auto_class("AutoModel")
FFPLfm2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# Without an entry in this mapping, which not every version of transformers may have, pipelines log an error.
names = getattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {})
names["ffp_lfm2"] = FFPLfm2ForCausalLM.__name__

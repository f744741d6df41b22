"""Definition of family records, and the units of a loaded model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...allocation.policy import Unit


# Weights per block of llama.cpp's K-quants (Q4_K, Q6_K), and of its simpler quantisations (Q8_0, Q4_0).
QUANTISATION_BLOCKS = (256, 32)


@dataclass(frozen=True)
class Family:
    """Names of the modules and config attributes of one model type. Module names are relative to a decoder layer.

    Projections with the same name are fused in one module, with their rows concatenated (`qkv_proj`, `gate_up_proj`).

    Attributes:
        model_type: `config.model_type` of the family's models.
        layers: Name of the list of decoder layers, relative to the `AutoModel` class.
        query, key, value: Projections whose rows belong to heads.
        fused_by_head: Whether fused rows are ordered by head (query, key and value of the first head, then of the
            next) instead of by projection.
        attention_output: Projection whose columns belong to query heads.
        ffn_inputs: Projections whose rows are FFN channels (gate and up, or `fc1`).
        ffn_output: Projection whose columns are FFN channels.
        heads_attribute, kv_heads_attribute, width_attribute: Config attributes of the sizes. `kv_heads_attribute` is
            `None` for families without grouped-query attention.
        default_width: FFN channels as a multiple of the hidden size if the config's width is `None`.
        head_counters: Attributes of a layer that depend on the number of heads: the attribute's path, and the quantity
            it holds (`"heads"`, `"kv_heads"`, or `"features"`, which is query heads times head dimension).
        normalised_outputs: Whether a norm follows the output projections of attention and FFN. It divides by the
            length of their outputs, so that errors count relative to it.
        prepare: Function to apply to a loaded dense model before its units are found.
        title: Name of the family in the generated model code; the prefix of its classes if `None`.
        modeling: Full name of the module with the model code, for a family of another package.
    """

    model_type: str
    layers: str = "layers"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    fused_by_head: bool = False
    attention_output: str = "self_attn.o_proj"
    ffn_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_output: str = "mlp.down_proj"
    heads_attribute: str = "num_attention_heads"
    kv_heads_attribute: str | None = "num_key_value_heads"
    width_attribute: str = "intermediate_size"
    default_width: int | None = None
    head_counters: tuple[tuple[str, str], ...] = ()
    normalised_outputs: bool = False
    prepare: Callable[[PreTrainedModel], None] | None = None
    title: str | None = None
    modeling: str | None = None

    @property
    def modeling_module(self) -> str:
        """Name of the module with the model code in a checkpoint."""
        return (self.modeling or f"modeling_ffp_{self.model_type}").rpartition(".")[2]

    def heads(self, config: PretrainedConfig) -> tuple[int, int, int]:
        """Return the numbers of query heads and KV heads, and the head dimension, of the dense model."""
        heads = getattr(config, self.heads_attribute)
        kv_heads = heads
        if self.kv_heads_attribute is not None:
            kv_heads = getattr(config, self.kv_heads_attribute) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return heads, kv_heads, head_dim

    def width(self, config: PretrainedConfig) -> int:
        """Return the number of FFN channels of the dense model."""
        width = getattr(config, self.width_attribute)
        return self.default_width * config.hidden_size if width is None else width

    def layer_overrides(self, config: PretrainedConfig, sizes: dict[str, int]) -> dict[str, int]:
        """Return a layer's entry of `per_layer_config` for sizes `{"attention": KV groups, "ffn": channels}`."""
        heads, kv_heads, _ = self.heads(config)
        overrides = {
            self.heads_attribute: sizes["attention"] * heads // kv_heads,
            self.width_attribute: sizes["ffn"],
        }
        if self.kv_heads_attribute is not None:
            overrides[self.kv_heads_attribute] = sizes["attention"]
        dense = {self.width_attribute: self.width(config)}
        return {name: value for name, value in overrides.items() if value != dense.get(name, getattr(config, name))}


@dataclass(frozen=True)
class Slice:
    """The part of a projection that belongs to the groups of a unit.

    Several slices of one fused module are in the order of its rows.

    Attributes:
        module: The projection, weight shape `[out_features, in_features]`.
        dim: 0 if groups consist of rows (outputs), 1 if they consist of columns (inputs).
        block: Number of rows or columns per group.
    """

    module: nn.Linear
    dim: int
    block: int

    def tensors(self) -> Iterator[str]:
        """Yield the names of the module's parameters that are divided into groups."""
        yield "weight"
        if self.dim == 0 and self.module.bias is not None:
            yield "bias"


@dataclass(frozen=True)
class ModelUnit:
    """A unit in a loaded model, with its projections.

    Attributes:
        unit: Numbers of groups and parameters, for the budget.
        slices: All projections of which rows or columns are removed; the output projection is the last.
        counters: Attributes that depend on the unit's size: object, attribute, and its value per group.
    """

    unit: Unit
    slices: tuple[Slice, ...]
    counters: tuple[tuple[Any, str, int], ...] = ()

    @property
    def output(self) -> Slice:
        """The output projection, whose inputs are measured, scored and compensated."""
        return self.slices[-1]


def quantisable_multiple(width: int) -> int:
    """Return the multiple for FFN widths: the largest quantisation block that leaves at least 32 steps, or 1."""
    return next((block for block in QUANTISATION_BLOCKS if width % block == 0 and width // block >= 32), 1)


def find_units(model: PreTrainedModel, family: Family, ffn_multiple: int | None = 1) -> list[ModelUnit]:
    """Return the units of a dense model, attention then FFN, layer by layer.

    Args:
        model: A causal LM of the family. `family.prepare` may change the layout of its weights, but not its outputs.
        family: The family record.
        ffn_multiple: FFN widths are multiples of this number of channels; `None` for `quantisable_multiple`.
    """
    if family.prepare:
        family.prepare(model)
    heads, kv_heads, head_dim = family.heads(model.config)
    group, width = heads // kv_heads, family.width(model.config)
    multiple = quantisable_multiple(width) if ffn_multiple is None else ffn_multiple
    counted = {"heads": group, "kv_heads": 1, "features": group * head_dim}
    units: list[ModelUnit] = []
    for index, layer in enumerate(model.base_model.get_submodule(family.layers)):
        attention = (
            *_input_slices(layer, family, group * head_dim, head_dim),
            Slice(layer.get_submodule(family.attention_output), 1, group * head_dim),
        )
        ffn = (
            *(Slice(layer.get_submodule(name), 0, 1) for name in family.ffn_inputs),
            Slice(layer.get_submodule(family.ffn_output), 1, 1),
        )
        counters = tuple((*_resolve(layer, path), counted[what]) for path, what in family.head_counters)
        units.append(ModelUnit(Unit(index, "attention", kv_heads, *_count_parameters(attention)), attention, counters))
        units.append(ModelUnit(Unit(index, "ffn", width, *_count_parameters(ffn), multiple), ffn))
    return units


def _input_slices(layer: nn.Module, family: Family, query_rows: int, head_dim: int) -> Iterator[Slice]:
    if family.fused_by_head:
        yield Slice(layer.get_submodule(family.query), 0, query_rows + 2 * head_dim)
    else:
        yield Slice(layer.get_submodule(family.query), 0, query_rows)
        yield Slice(layer.get_submodule(family.key), 0, head_dim)
        yield Slice(layer.get_submodule(family.value), 0, head_dim)


def _resolve(layer: nn.Module, path: str) -> tuple[Any, str]:
    owner, _, attribute = path.rpartition(".")
    return reduce(getattr, owner.split("."), layer), attribute


def _count_parameters(slices: tuple[Slice, ...]) -> tuple[int, int]:
    owned = sum(
        part.block * (getattr(part.module, name)[0].numel() if part.dim == 0 else part.module.weight.shape[0])
        for part in slices
        for name in part.tensors()
    )
    output_bias = slices[-1].module.bias
    return owned, 0 if output_bias is None else output_bias.numel()


def permute_blocks(tensor: torch.Tensor, dim: int, block: int, order: torch.Tensor) -> torch.Tensor:
    """Reorder blocks of `block` consecutive rows or columns along `dim`; `order` has shape `[groups]`."""
    index = (order[:, None] * block + torch.arange(block, device=order.device)).flatten()
    return tensor.index_select(dim, index.to(tensor.device))

"""Definition of family records, and the units of a loaded model."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...allocation.policy import Group, Unit


# Weights per block of llama.cpp's K-quants (Q4_K, Q6_K), and of its simpler quantizations (Q8_0, Q4_0).
QUANTIZATION_BLOCKS = (256, 32)


@dataclass(frozen=True)
class Experts:
    """Names of the modules of a layer's mixture of experts, and of config attributes.

    Attributes:
        count: Config attribute of the number of experts.
        router: Module whose tensors have a row per expert.
        module: Module with the experts' weights, along the first dimension of its tensors.
        grouped: Whether the router first chooses `config.topk_group` of `config.n_group` groups of experts, which must
            be equally large.
    """

    count: str = "num_experts"
    router: str = "mlp.gate"
    module: str = "mlp.experts"
    grouped: bool = False

    def groups(self, config: PretrainedConfig) -> int:
        """Return the number of groups that the router chooses from."""
        return config.n_group if self.grouped else 1

    def required(self, config: PretrainedConfig) -> int:
        """Return the smallest number of experts: those of a token, and of every group two, by which it is compared."""
        top_k = config.num_experts_per_tok
        if not self.grouped:
            return top_k
        return config.n_group * max(2, math.ceil(top_k / config.topk_group))


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
        attention_modules, ffn_modules: Modules of a layer that go when its attention or its FFN is removed. The first
            then yields zeros, and the others are the identity. Norms stay if both blocks or the residual need them.
        default_width: FFN channels as a multiple of the hidden size if the config's width is `None`.
        head_counters: Attributes of a layer that depend on the number of heads: the attribute's path, and the quantity
            it holds (`"heads"`, `"kv_heads"`, `"heads_per_kv_head"`, or `"features"`, which is query heads times head
            dimension). The default is what transformers' grouped-query attention has.
        prunes_attention: Whether attention heads can be removed.
        normalized_outputs: Whether the output projections of attention and FFN are followed by a norm, so that errors
            count relative to the norm of the output.
        prepare: Idempotent function to apply to a loaded dense model before its units are determined.
        title: Name of the family in the generated modeling code; the prefix of its classes if `None`.
        modeling: Full name of the module with the modeling code, for a family of another package.
        experts: Where the experts are, of a mixture: only these are removed, the same number in every layer, and the
            names of other projections and sizes are not read.
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
    attention_modules: tuple[str, ...] = ("self_attn", "input_layernorm")
    ffn_modules: tuple[str, ...] = ("mlp", "post_attention_layernorm")
    default_width: int | None = None
    head_counters: tuple[tuple[str, str], ...] = (("self_attn.num_key_value_groups", "heads_per_kv_head"),)
    prunes_attention: bool = True
    normalized_outputs: bool = False
    prepare: Callable[[PreTrainedModel], None] | None = None
    title: str | None = None
    modeling: str | None = None
    experts: Experts | None = None

    @property
    def modeling_module(self) -> str:
        """Name of the module with the modeling code in a checkpoint."""
        return (self.modeling or f"modeling_ffp_{self.model_type}").rpartition(".")[2]

    @property
    def class_prefix(self) -> str:
        """Beginning of the names of the classes in transformers, such as `Llama`."""
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.model_type]
        return name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")

    def heads(self, config: PretrainedConfig) -> tuple[int, int, int]:
        """Return the numbers of query heads and KV heads, and the head dimension, of the dense model."""
        heads = getattr(config, self.heads_attribute)
        kv_heads = heads
        if self.kv_heads_attribute is not None:
            kv_heads = getattr(config, self.kv_heads_attribute) or heads
        return heads, kv_heads, head_dimension(config)

    def attention_groups(self, config: PretrainedConfig) -> tuple[Group, ...]:
        """Return the kinds of groups that can be removed from attention of a dense model, KV groups first.

        KV groups need several KV heads, and query heads need several of them per KV head.
        """
        heads, kv_heads, _ = self.heads(config)
        if not self.prunes_attention or self.experts:
            return ("all_heads",)
        if self.fused_by_head or heads == kv_heads:
            return ("kv_group",)
        return ("kv_group", "query_head") if kv_heads > 1 else ("query_head",)

    def width(self, config: PretrainedConfig) -> int:
        """Return the number of FFN channels of the dense model."""
        width = getattr(config, self.width_attribute)
        return self.default_width * config.hidden_size if width is None else width

    def layer_overrides(self, config: PretrainedConfig, sizes: dict[Group, int]) -> dict[str, Any]:
        """Return a layer's entry of `per_layer_config` for the numbers of groups to keep; others are unchanged.

        A part that is removed is named in `skip`, and has no sizes.
        """
        heads, kv_heads, _ = self.heads(config)
        kept_kv_heads = sizes.get("kv_group", kv_heads)
        kept = {
            self.heads_attribute: kept_kv_heads * sizes.get("query_head", heads // kv_heads),
            self.width_attribute: sizes["channel"],
        }
        if self.kv_heads_attribute is not None:
            kept[self.kv_heads_attribute] = kept_kv_heads
        dense = {self.width_attribute: self.width(config)}
        kept = {name: size for name, size in kept.items() if size not in (0, dense.get(name, getattr(config, name)))}
        skip = ["mlp" if group == "channel" else "attention" for group, size in sizes.items() if size == 0]
        return kept | ({"skip": skip} if skip else {})


@dataclass(frozen=True)
class Slice:
    """The part of a projection that belongs to the groups of a unit.

    Slices of a fused module are in the order of its rows.

    Attributes:
        module: The projection, weight shape `[out_features, in_features]`, or the router or all experts of a mixture.
        dim: 0 if groups consist of rows (outputs), 1 if they consist of columns (inputs).
        block: Number of rows or columns per group.
        section: Column of the unit's order by which the groups of this slice are sorted (see `ModelUnit.columns`).
        fixed: Number of rows that belong to no group, for a slice without groups.
        sections: Number of slices of the module that the groups are divided among, as many to each.
    """

    module: nn.Module
    dim: int
    block: int
    section: int = 0
    fixed: int = 0
    sections: int = 1

    def length(self, groups: int) -> int:
        """Return the number of rows or columns of this many groups."""
        return groups // self.sections * self.block + self.fixed

    def tensors(self) -> list[str]:
        """Return the names of the module's parameters and buffers that are divided into groups."""
        own = (*self.module.named_parameters(recurse=False), *self.module.named_buffers(recurse=False))
        return [name for name, _ in own] if self.dim == 0 else ["weight"]


@dataclass(frozen=True)
class ModelUnit:
    """A unit in a loaded model, with its projections.

    Where a group is one query head of every KV head, the query and output projections have one section of rows or
    columns per KV head, and a group owns a block of each. Every section is sorted by itself: group `j` consists of the
    query heads of rank `j` within their KV heads. In *group order* the columns of a group are next to each other, so
    that a policy keeps a prefix; in the *layout* of the projection, those of a section are. If a router chooses among
    groups of experts, each of these is a section, which loses as many experts as the others.

    Attributes:
        unit: Numbers of groups and parameters, for the budget.
        slices: All projections of which rows or columns are removed; the output projection is the last.
        counters: Attributes that depend on the unit's size: object, attribute, and its value per group.
        sections: Number of sections of the output projection: KV heads if groups are query heads, groups of the router
            if they are experts, otherwise 1.
    """

    unit: Unit
    slices: tuple[Slice, ...]
    counters: tuple[tuple[Any, str, int], ...] = ()
    sections: int = 1

    @property
    def output(self) -> Slice:
        """The output projection, whose inputs are measured, scored and compensated, with all columns of a group."""
        last = self.slices[-1]
        return Slice(last.module, last.dim, self.sections * last.block)

    @property
    def width(self) -> int:
        """Number of inputs of the output projection, or of that of an expert."""
        last = self.slices[-1]
        return getattr(last.module, last.tensors()[-1]).shape[-1]

    def tensors(self) -> Iterator[tuple[nn.Module, str, tuple[Slice, ...]]]:
        """Yield modules, names of their parameters that are divided into groups, and the slices of each in order."""
        for module in dict.fromkeys(part.module for part in self.slices):
            parts = tuple(part for part in self.slices if part.module is module)
            for name in parts[0].tensors():
                yield module, name, parts

    def columns(self, order: torch.Tensor) -> torch.Tensor:
        """Return the columns of the output projection in group order, shape `[features]`.

        Args:
            order: Groups from most to least important, shape `[groups]`, or `[groups, sections]` for one order per
                section.
        """
        groups, block = self.unit.groups, self.slices[-1].block
        starts = order.reshape(groups, -1) + groups * torch.arange(self.sections)
        return (starts[..., None] * block + torch.arange(block)).flatten()

    def in_group_order(self, features: torch.Tensor) -> torch.Tensor:
        """Reorder the last dimension of inputs or weights of the output projection from its layout to group order."""
        return features if self.sections == 1 else self._transposed(features, (self.sections, -1))

    def in_layout(self, features: torch.Tensor) -> torch.Tensor:
        """Reorder the last dimension of inputs or weights of the output projection from group order to its layout."""
        return features if self.sections == 1 else self._transposed(features, (-1, self.sections))

    def _transposed(self, features: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        return features.unflatten(-1, (*shape, self.slices[-1].block)).transpose(-3, -2).flatten(-3)


def head_dimension(config: PretrainedConfig) -> int:
    """Return the dimension of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def units_of_layer(units: Sequence[ModelUnit], layer: int) -> list[int]:
    """Return the indices of the units of a layer."""
    return [index for index, unit in enumerate(units) if unit.unit.layer == layer]


def quantizable_multiple(width: int) -> int:
    """Return the multiple for FFN widths: the largest quantization block that leaves at least 32 steps, or 1."""
    return next((block for block in QUANTIZATION_BLOCKS if width % block == 0 and width // block >= 32), 1)


def find_units(
    model: PreTrainedModel,
    family: Family,
    multiple_of: int | None = 1,
    group: Group | Mapping[int, Group] | None = None,
) -> list[ModelUnit]:
    """Return the units of a dense model, or of a pruned one in its layout, layer by layer: attention, then FFN.

    Of a mixture, these are the experts of the layers that have some.

    Args:
        model: A causal LM of the family. `family.prepare` may change the layout of its weights, but not its outputs.
        family: The family record.
        multiple_of: FFN widths are multiples of this number of channels; `None` for `quantizable_multiple`.
        group: Groups of attention, or those by layer; the first of `family.attention_groups` if it is none of them.
    """
    if family.prepare:
        family.prepare(model)
    layers = model.base_model.get_submodule(family.layers)
    if family.experts:
        return [unit for index, layer in enumerate(layers) for unit in _experts(index, layer, family, model.config)]
    width = family.width(model.config)
    multiple = quantizable_multiple(width) if multiple_of is None else multiple_of
    possible, rows = family.attention_groups(model.config), getattr(model.config, "pruned_units", ())
    remaining = {(row["layer"], row["group"]): row["kept"] for row in rows}
    units: list[ModelUnit] = []
    for index, layer in enumerate(layers):
        wanted = group.get(index) if isinstance(group, Mapping) else group
        wanted = wanted if wanted in possible else possible[0]
        units.append(_attention(index, layer, family, model.config, wanted, remaining.get((index, wanted))))
        ffn = (
            *(Slice(layer.get_submodule(name), 0, 1) for name in family.ffn_inputs),
            Slice(layer.get_submodule(family.ffn_output), 1, 1),
        )
        parameters, left = _count_parameters(ffn, width), remaining.get((index, "channel"))
        units.append(ModelUnit(Unit(index, "ffn", width, *parameters, multiple, remaining=left), ffn))
    return units


def _attention(
    index: int, layer: nn.Module, family: Family, config: PretrainedConfig, group: Group, remaining: int | None
) -> ModelUnit:
    heads, kv_heads, head_dim = family.heads(config)
    if group == "all_heads":
        groups, sections, block, key = 1, 1, heads * head_dim, (kv_heads * head_dim, 0, 0)
        quantities = {}
    elif group == "kv_group":
        groups, sections, block, key = kv_heads, 1, heads // kv_heads * head_dim, (head_dim, 0, 0)
        quantities = {"heads": heads // kv_heads, "kv_heads": 1, "features": block}
    else:
        groups, sections, block, key = heads // kv_heads, kv_heads, head_dim, (0, 0, kv_heads * head_dim)
        quantities = {"heads": kv_heads, "heads_per_kv_head": 1, "features": kv_heads * head_dim}
    query, output = map(layer.get_submodule, (family.query, family.attention_output))
    if family.fused_by_head:
        slices = [Slice(query, 0, block + 2 * head_dim)]
    else:
        slices = [Slice(query, 0, block, section) for section in range(sections)]
        slices += [Slice(layer.get_submodule(name), 0, *key) for name in (family.key, family.value)]
    slices += [Slice(output, 1, block, section) for section in range(sections)]
    counters = tuple(
        (*_resolve(layer, path), quantities[quantity])
        for path, quantity in family.head_counters
        if quantity in quantities
    )
    types = getattr(config, "layer_types", None) or [None] * (index + 1)
    required = types.index(types[index]) == index
    options = {"group": group, "required": required, "remaining": remaining}
    unit = Unit(index, "attention", groups, *_count_parameters(slices, groups), **options)
    return ModelUnit(unit, tuple(slices), counters, sections)


def _experts(index: int, layer: nn.Module, family: Family, config: PretrainedConfig) -> Iterator[ModelUnit]:
    names, sections = family.experts, family.experts.groups(config)
    # Some layers of many mixtures have a dense FFN.
    if names.module in dict(layer.named_modules()):
        modules = [layer.get_submodule(name) for name in (names.router, names.module)]
        slices = tuple(
            Slice(module, 0, 1, section, sections=sections) for module in modules for section in range(sections)
        )
        count = getattr(config, names.count)
        parameters = sum(one.numel() for module in modules for one in module.parameters()) // count
        unit = Unit(index, "experts", count, parameters, multiple=sections, required=names.required(config))
        yield ModelUnit(unit, slices, tuple((module, "num_experts", 1) for module in modules), sections)


def _resolve(layer: nn.Module, path: str) -> tuple[Any, str]:
    owner, _, attribute = path.rpartition(".")
    return reduce(getattr, owner.split("."), layer), attribute


def _count_parameters(slices: Sequence[Slice], groups: int) -> tuple[int, int]:
    """Return the number of parameters per group, and that of those that belong to no group."""
    per_group = sum(
        slice_.block * (getattr(slice_.module, name)[0].numel() if slice_.dim == 0 else slice_.module.weight.shape[0])
        for slice_ in slices
        for name in slice_.tensors()
    )
    modules = {slice_.module for slice_ in slices}
    return per_group, sum(
        parameter.numel() for module in modules for parameter in module.parameters()
    ) - groups * per_group

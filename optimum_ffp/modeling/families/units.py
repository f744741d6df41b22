"""Units of a loaded model: its attentions, FFNs and experts, with their projections."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...allocation.policy import Group, Unit
from .base import Family, Mixture


# Weights per block of llama.cpp's K-quants (Q4_K, Q6_K), and of its simpler quantizations (Q8_0, Q4_0).
QUANTIZATION_BLOCKS = (256, 32)


@dataclass(frozen=True)
class Slice:
    """The part of a projection that belongs to the groups of a unit; parts of a fused module are in its order.

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
    def projection(self) -> nn.Linear:
        """The output projection of an attention or an FFN."""
        return cast(nn.Linear, self.slices[-1].module)

    @property
    def mixture(self) -> tuple[Any, Any]:
        """The router and the module with all experts, whose classes depend on the family."""
        return self.slices[0].module, self.slices[-1].module

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

        `order` has groups from most to least important, shape `[groups]`, or `[groups, sections]` for one per section.
        """
        groups, block = self.unit.groups, self.slices[-1].block
        starts = order.reshape(groups, -1) + groups * torch.arange(self.sections)
        return (starts[..., None] * block + torch.arange(block)).flatten()

    def in_group_order(self, features: torch.Tensor) -> torch.Tensor:
        """Reorder the last dimension of inputs or weights of the output projection from its layout to group order."""
        return self._transposed(features, self.sections, -1)

    def in_layout(self, features: torch.Tensor) -> torch.Tensor:
        """Reorder the last dimension of inputs or weights of the output projection from group order to its layout."""
        return self._transposed(features, -1, self.sections)

    def _transposed(self, features: torch.Tensor, *shape: int) -> torch.Tensor:
        if self.sections == 1:
            return features
        return features.unflatten(-1, (*shape, self.slices[-1].block)).transpose(-3, -2).flatten(-3)


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
    layers = cast(nn.ModuleList, model.base_model.get_submodule(family.layers))
    if isinstance(family, Mixture):
        return [unit for index, layer in enumerate(layers) for unit in _experts(index, layer, family, model.config)]
    width = family.width(model.config)
    multiple = quantizable_multiple(width) if multiple_of is None else multiple_of
    possible, rows = family.attention_groups(model.config), getattr(model.config, "pruned_units", ())
    removed = {(row.layer, row.group): row.items - row.kept for row in rows}
    units: list[ModelUnit] = []
    for index, layer in enumerate(layers):
        # Some layers of a hybrid have a convolution or a state instead, which stays.
        if family.query in dict(layer.named_modules()):
            wanted = group.get(index) if isinstance(group, Mapping) else group
            wanted = wanted if wanted in possible else possible[0]
            units.append(_attention(index, layer, family, model.config, wanted, removed.get((index, wanted), 0)))
        ffn = (
            *(Slice(layer.get_submodule(name), 0, 1) for name in family.ffn_inputs),
            Slice(layer.get_submodule(family.ffn_output), 1, 1),
        )
        parameters, lost = _count_parameters(ffn, width), removed.get((index, "channel"), 0)
        units.append(ModelUnit(Unit(index, "channel", width, *parameters, multiple, removed=lost), ffn))
    return units


def _attention(
    index: int, layer: nn.Module, family: Family, config: PretrainedConfig, group: Group, removed: int
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
    counters = []
    for path, quantity in family.head_counters:
        if quantity in quantities:
            *owners, attribute = path.split(".")
            counters.append((reduce(getattr, owners, layer), attribute, quantities[quantity]))
    types = getattr(config, "layer_types", None) or [None] * (index + 1)
    required = types.index(types[index]) == index
    unit = Unit(index, group, groups, *_count_parameters(slices, groups), required=required, removed=removed)
    return ModelUnit(unit, tuple(slices), tuple(counters), sections)


def _experts(index: int, layer: nn.Module, family: Mixture, config: PretrainedConfig) -> Iterator[ModelUnit]:
    sections = family.router_groups(config)
    # Some layers of many mixtures have a dense FFN.
    if family.experts in dict(layer.named_modules()):
        modules = [layer.get_submodule(name) for name in (family.router, family.experts)]
        slices = [Slice(module, 0, 1, part, sections=sections) for module in modules for part in range(sections)]
        count = family.count_experts(config)
        parameters = sum(one.numel() for module in modules for one in module.parameters()) // count
        unit = Unit(index, "expert", count, parameters, multiple=sections, required=family.min_experts(config))
        yield ModelUnit(unit, tuple(slices), tuple((module, "num_experts", 1) for module in modules), sections)


def _count_parameters(slices: Sequence[Slice], groups: int) -> tuple[int, int]:
    """Return the number of parameters per group, and that of those that belong to no group."""
    per_group = sum(
        slice_.block * getattr(slice_.module, name).select(slice_.dim, 0).numel()
        for slice_ in slices
        for name in slice_.tensors()
    )
    modules = {slice_.module for slice_ in slices}
    total = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return per_group, total - groups * per_group

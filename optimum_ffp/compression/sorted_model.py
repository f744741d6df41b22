"""A model with its groups sorted by importance, so that every policy keeps a prefix of every unit."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy
from ..engine import LayerwiseModel
from ..engine.layerwise_model import Change
from ..modeling.auto import attention_of, homogeneous_config, pruned_config, pruned_model_class
from ..modeling.families import ModelUnit, Slice, TransposedLinear, units_of_layer
from ..utils.device_memory import free_device_memory
from ..utils.lm_head import replaced_forward, token_parameters
from ..utils.precision import move
from ..utils.resume import Journal
from ..vocabulary.tokenizer import remap_ids
from ..vocabulary.trimmed import TrimmedVocabulary
from .ridge import PrefixRidge


# Minimum free memory of the accelerator relative to the size of the pruned model, to leave some for activations.
PRUNED_HEADROOM = 1.25


@dataclass(frozen=True)
class SortedTensor:
    """A parameter of a projection with all its groups, sorted by importance, and the slices fused in it, in order."""

    module: nn.Module
    name: str
    full: torch.Tensor
    groups: int
    parts: tuple[Slice, ...]

    def prefix(self, size: int) -> torch.Tensor:
        """Return the first `size` groups: a view, or a copy of fused slices, whose prefixes are not adjacent."""
        if size == self.groups:
            return self.full
        dim = self.parts[0].dim
        slices = zip(self.full.split([part.length(self.groups) for part in self.parts], dim), self.parts)
        views = [entries.narrow(dim, 0, part.length(size)) for entries, part in slices]
        return views[0] if len(views) == 1 else torch.cat(views, dim)


def _sort(unit: ModelUnit, order: torch.Tensor) -> list[SortedTensor]:
    groups, tensors = unit.unit.groups, []
    orders = order.reshape(len(order), -1).expand(-1, unit.sections)
    for module, name, parts in unit.tensors():
        parameter, dim = getattr(module, name), parts[0].dim
        slices = torch.arange(parameter.shape[dim]).split([part.length(groups) for part in parts])
        index = [
            entries if part.fixed else entries.view(-1, part.block)[orders[:, part.section]].flatten()
            for entries, part in zip(slices, parts)
        ]
        parameter.data = parameter.data.index_select(dim, torch.cat(index).to(parameter.device))
        tensors.append(SortedTensor(module, name, full=parameter.data, groups=groups, parts=parts))
    return tensors


class SortedModel:
    """Runs any policy on views `W[:k]` of weights that are sorted once, without masks or copies.

    Sorting reorders the heads and channels of the given model, which does not change its outputs: in place, or
    whenever the weights of a layer are moved to the device.

    Args:
        layerwise: The dense model.
        units: The units of the model.
        orders: Groups from most to least important, one tensor per unit, each of shape `[groups]` or
            `[groups, sections]` (see `ModelUnit.columns`).
        ridges: Ridge factors of the units, which `compensated` requires; empty without.

    Attributes:
        prefixes: Prefix of the names of every layer's parameters in the model.
        stored_dtypes: Dtype of every tensor at rest; the biases of some routers have one of their own.
    """

    def __init__(
        self,
        layerwise: LayerwiseModel,
        units: Sequence[ModelUnit],
        orders: Sequence[torch.Tensor],
        ridges: Sequence[PrefixRidge] = (),
    ):
        self.layerwise, self.model, self.family = layerwise, layerwise.model, layerwise.family
        self.model_units, self.ridges = list(units), ridges
        self.units = tuple(unit.unit for unit in units)
        # By unit; only of layers whose weights are loaded.
        self._sorted: dict[int, list[SortedTensor]] = {}
        names = {module: name for name, module in self.model.named_modules()}
        self._output_names = [f"{names[unit.output.module]}.weight" for unit in units]
        self.prefixes = [f"{names[layer]}." for layer in layerwise.layers]
        self.stored_dtypes = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}
        for index in range(len(layerwise.layers)):
            layerwise.weights.change(index, partial(self._sort_layer, index, orders), partial(self._forget, index))
        if layerwise.weights.resident and self.model.device.type == "cpu":
            # Weights from safetensors are memory-mapped: the whole file stays mapped while any tensor refers to it.
            copied = {tensor.full.data_ptr() for tensors in self._sorted.values() for tensor in tensors}
            for parameter in self.model.parameters():
                if parameter.data_ptr() not in copied:
                    parameter.data = parameter.data.clone()

    def _sort_layer(self, layer: int, orders: Sequence[torch.Tensor]) -> None:
        for index in self.members(layer):
            self._sorted[index] = _sort(self.model_units[index], orders[index])

    def _forget(self, layer: int) -> None:
        for index in self.members(layer):
            self._sorted.pop(index, None)

    def members(self, layer: int) -> list[int]:
        """Return the indices of the units of a layer."""
        return units_of_layer(self.model_units, layer)

    def named_output(self, index: int, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
        """Return a unit's output weight by name for `change`, from one with its kept columns in group order."""
        return self._output_names[index], self.model_units[index].in_layout(weight)

    def compensated(self, policy: PruningPolicy, members: Iterable[int] | None = None) -> dict[str, torch.Tensor]:
        """Return the output weights of kept units after ridge regression by name, each `[out_features, kept columns]`.

        `members` are the indices of the units, by default all. The weights of their layers must be loaded.
        """
        chosen = range(len(policy.sizes)) if members is None else members
        kept = [index for index in chosen if policy.sizes[index]]
        return dict(self.named_output(index, self.compensated_output(index, policy.sizes[index])) for index in kept)

    def compensated_output(self, index: int, size: int) -> torch.Tensor:
        """Return the compensated output weight of one unit of `size` groups, shape `[out_features, kept columns]`."""
        return self.ridges[index].compensated(self.dense_output(index), size * self.model_units[index].output.block)

    def change(
        self,
        policy: PruningPolicy,
        weights: Mapping[str, torch.Tensor] | None = None,
        compensated: bool = False,
    ) -> Change:
        """Return a `Change` that applies a policy to a layer, or replaces weights after the last layer.

        The output projection of a removed unit yields zeros, and a removed layer returns its input. `weights` replace
        the views and other parameters of the dense model by name; those on another device are copied for the duration
        of the context. With `compensated`, the output weights after ridge regression are used too.
        """
        removed_layers = policy.removed_layers

        @contextmanager
        def applied_to(layer: int) -> Iterator[None]:
            members = self.members(layer)
            if layer in removed_layers:
                with replaced_forward(self.layerwise.layers[layer], lambda hidden, *_, **__: hidden):
                    yield
                return
            used = self.compensated(policy, members) if compensated else {}
            used |= {name: weight for name, weight in (weights or {}).items() if self._layer_of(name) == layer}
            originals = {name: self.model.get_parameter(name).data for name in used}
            with ExitStack() as stack:
                for module in [self.model_units[index].projection for index in members if not policy.sizes[index]]:
                    stack.enter_context(replaced_forward(module, partial(_zeros, module.out_features)))
                stack.callback(self._set, members, [unit.groups for unit in self.units], originals)
                self._set(members, policy.sizes, used)
                yield

        return applied_to

    def _layer_of(self, name: str) -> int:
        """Return the index of the layer that a parameter belongs to, or the number of layers."""
        layers = (index for index, prefix in enumerate(self.prefixes) if name.startswith(prefix))
        return next(layers, len(self.prefixes))

    def _set(self, members: Iterable[int], sizes: Sequence[int], weights: Mapping[str, torch.Tensor]) -> None:
        for index in members:
            # What is removed still runs, at its smallest: attention can't reshape to no heads.
            size = sizes[index] or 1
            for tensor in self._sorted[index]:
                getattr(tensor.module, tensor.name).data = tensor.prefix(size)
            for owner, attribute, count in self.model_units[index].counters:
                setattr(owner, attribute, size * count)
        for name, weight in weights.items():
            parameter = self.model.get_parameter(name)
            parameter.data = weight.to(parameter.device, parameter.dtype)

    def dense_output(self, index: int) -> torch.Tensor:
        """Return the sorted weight of a unit's output projection, shape `[out_features, features]`."""
        return self.model_units[index].in_group_order(self._sorted[index][-1].full)

    def removed_modules(self, policy: PruningPolicy, layer: int) -> tuple[str, ...]:
        """Return the prefixes, relative to a layer, of the names of its parameters that go with its removed units."""
        modules = {"attention": self.family.attention_modules, "ffn": self.family.ffn_modules}
        removed = [self.units[index].kind for index in self.members(layer) if not policy.sizes[index]]
        return tuple(f"{name}." for kind in removed for name in modules[kind])

    def slice(
        self,
        policy: PruningPolicy,
        weights: Mapping[str, torch.Tensor] | None = None,
        journal: Journal | None = None,
        homogeneous: bool = False,
        vocabulary: TrimmedVocabulary | None = None,
    ) -> PreTrainedModel:
        """Return a physically smaller model with copied weights, of the model class that its checkpoint contains.

        It is on the device of the dense model if it fits, otherwise in host memory. Its policy and weights are those
        for `change`. A journal that keeps tensors on disk saves the layers and memory-maps them. With `homogeneous`,
        and for a family without classes of its own, the dense model's class is used if it supports the policy's sizes
        (`is_homogeneous`). With a trimmed vocabulary, the model has the rows of its tokens, or those in `weights`.
        """
        change, journal = self.change(policy, weights), journal or Journal()
        kept = policy.kept_layers(len(self.prefixes))
        with change(len(self.prefixes)):
            state = journal.mapped("slicing-outer", partial(self._copy_weights, self.model, "", tuple(self.prefixes)))
        for index, layer in self.layerwise.iter_layers():
            if index in kept:
                copied = partial(self._copy_weights, layer, self.prefixes[index], self.removed_modules(policy, index))
                with change(index):
                    layer_weights = journal.mapped(f"slicing-{index}", copied)
                prefix = self.prefixes[kept.index(index)]
                state |= {prefix + name: tensor for name, tensor in layer_weights.items()}
        config = homogeneous_config(self.model, policy) if homogeneous or not self.family.classes else None
        model_class = pruned_model_class(self.family) if config is None else type(self.model)
        config = config or pruned_config(self.model.config, policy)
        generation_config = copy.deepcopy(self.model.generation_config)
        if vocabulary:
            rows = {id(one): len(one) for one in token_parameters(self.model).values()}
            for name, one in self.model.named_parameters(remove_duplicate=False):
                # Trained ones are those of the kept tokens.
                if id(one) in rows and len(state[name]) == rows[id(one)]:
                    state[name] = state[name][vocabulary.kept]
            config.vocab_size = len(vocabulary.kept)
            remap_ids(config, vocabulary.kept)
            remap_ids(generation_config, vocabulary.kept)
        options = {"dtype": self.layerwise.stored_dtype, **attention_of(config)}
        pruned = model_class.from_pretrained(None, config=config, state_dict=state, **options)
        # Experts are saved as by default, with a tensor each, rather than as they were loaded here.
        vars(pruned)["_weight_conversions"] = None
        # from_pretrained sets the name to the folder, which is None here.
        pruned.config._name_or_path = pruned.name_or_path = ""
        pruned.generation_config = generation_config
        free = free_device_memory(self.layerwise.device)
        fits = free is None or free > PRUNED_HEADROOM * pruned.get_memory_footprint()
        if fits and not self.layerwise.weights.offloaded:
            move(pruned, self.layerwise.device)
        return pruned.eval()

    def _copy_weights(self, module: nn.Module, prefix: str, excluded: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Copy weights except those with the given prefixes to host memory, in the checkpoint's layout and dtype.

        `prefix` is that of the module's names in the dense model. Views share storage with the dense weights.
        """
        state = {
            name: tensor.detach().to("cpu", self.stored_dtypes[prefix + name], copy=True)
            for name, tensor in module.state_dict().items()
            if not name.startswith(excluded)
        }
        for name, part in module.named_modules():
            if isinstance(part, TransposedLinear) and f"{name}.weight" in state:
                state[f"{name}.weight"] = state[f"{name}.weight"].t().contiguous()
        return state


def _zeros(features: int, hidden: torch.Tensor) -> torch.Tensor:
    return hidden.new_zeros(*hidden.shape[:-1], features)

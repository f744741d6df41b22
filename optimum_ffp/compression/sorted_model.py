"""A model with its groups sorted by importance, so that every policy keeps a prefix of every unit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy
from ..modeling import pruned_config, pruned_model_class
from ..modeling.families import Family, ModelUnit, Slice, TransposedLinear
from ..modeling.families.base import permute_blocks
from .ridge import PrefixRidge


@dataclass(frozen=True)
class SortedTensor:
    """A parameter of a projection with its groups sorted by importance.

    Attributes:
        module: The projection.
        name: Name of the parameter in `module`.
        full: The parameter with all groups.
        groups: Number of all groups.
        parts: The slices that are fused in the parameter, in the order of its rows or columns.
    """

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
    groups, found = unit.unit.groups, []
    orders = order.reshape(groups, -1).expand(-1, unit.sections)
    for module in dict.fromkeys(part.module for part in unit.slices):
        parts = tuple(part for part in unit.slices if part.module is module)
        dim = parts[0].dim
        for name in parts[0].tensors():
            parameter = getattr(module, name)
            slices = zip(parameter.data.split([part.length(groups) for part in parts], dim), parts)
            parameter.data = torch.cat(
                [
                    entries if part.fixed else permute_blocks(entries, dim, part.block, orders[:, part.section])
                    for entries, part in slices
                ],
                dim,
            )
            found.append(SortedTensor(module, name, parameter.data, groups, parts))
    return found


class SortedModel:
    """Runs any policy on views `W[:k]` of weights that are sorted once, without masks or copies.

    Sorting reorders the heads and channels of the given model in place, which does not change its outputs.

    Args:
        model: The dense model. It is reordered in place.
        units: The units of the model.
        orders: Groups from most to least important, one tensor per unit, each of shape `[groups]` or
            `[groups, sections]` (see `ModelUnit.columns`).
        family: The family record of the model.
    """

    def __init__(
        self, model: PreTrainedModel, units: Sequence[ModelUnit], orders: Sequence[torch.Tensor], family: Family
    ):
        self.model, self.model_units, self.family = model, list(units), family
        self.units = tuple(unit.unit for unit in units)
        self.ridges: list[PrefixRidge] | None = None
        self._sorted = [_sort(unit, order) for unit, order in zip(units, orders)]
        names = {module: name for name, module in model.named_modules()}
        self._output_names = [f"{names[unit.output.module]}.weight" for unit in units]
        if model.device.type == "cpu":
            self._leave_the_file()

    def _leave_the_file(self) -> None:
        # Weights from safetensors are memory-mapped: the whole file stays mapped while any tensor refers to it.
        own = {tensor.full.data_ptr() for tensors in self._sorted for tensor in tensors}
        for parameter in self.model.parameters():
            if parameter.data_ptr() not in own:
                parameter.data = parameter.data.clone()

    def factorise(self, grams: Iterable[torch.Tensor], ridge_lambda: float, relative: bool) -> None:
        """Factor the ridge regression of every unit, which `compensated` requires.

        Args:
            grams: Gram matrices in group order, one per unit. Each is consumed when its unit is factored, so that
                a lazy iterable never holds Gram matrices and factors of all units at once.
            ridge_lambda: λ (the paper: 0.01).
            relative: λ is a multiple of `mean(diag H)`; otherwise it is absolute.
        """
        weights = map(self.dense_output, range(len(self.model_units)))
        self.ridges = [PrefixRidge(weight, gram, ridge_lambda, relative) for weight, gram in zip(weights, grams)]

    def named_output(self, index: int, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
        """Return the name of a unit's output weight, and the weight as the model needs it, for `applied`.

        Args:
            index: Index of the unit.
            weight: Weight with its columns in group order, shape `[out_features, kept columns]`.
        """
        return self._output_names[index], self.model_units[index].in_layout(weight)

    def compensated(self, policy: PruningPolicy, members: Iterable[int] | None = None) -> dict[str, torch.Tensor]:
        """Return the output weights after ridge regression by name, each `[out_features, kept columns]`.

        Args:
            policy: Number of groups to keep per unit.
            members: Indices of the units to compensate; all if `None`.
        """
        chosen = range(len(policy.sizes)) if members is None else members
        return dict(self.named_output(index, self.compensated_output(index, policy.sizes[index])) for index in chosen)

    def compensated_output(self, index: int, size: int) -> torch.Tensor:
        """Return the compensated output weight of one unit of `size` groups, shape `[out_features, kept columns]`."""
        return self.ridges[index].compensated(size * self.model_units[index].output.block)

    @contextmanager
    def applied(
        self, policy: PruningPolicy, weights: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[PreTrainedModel]:
        """Apply a policy to the model for the duration of the context.

        Args:
            policy: Number of groups to keep per unit.
            weights: Tensors to use instead of the views and of the dense model's own, by the parameter's name. Those
                on another device are copied for the duration of the context.
        """
        own = {name: self.model.get_parameter(name).data for name in weights or {}}
        try:
            self._set(policy, weights or {})
            yield self.model
        finally:
            self._set(PruningPolicy.dense(self.units), own)

    def _set(self, policy: PruningPolicy, weights: Mapping[str, torch.Tensor]) -> None:
        for index, (unit, size) in enumerate(zip(self.model_units, policy.sizes)):
            for tensor in self._sorted[index]:
                getattr(tensor.module, tensor.name).data = tensor.prefix(size)
            for owner, attribute, count in unit.counters:
                setattr(owner, attribute, size * count)
        for name, weight in weights.items():
            parameter = self.model.get_parameter(name)
            parameter.data = weight.to(parameter.device)

    def dense_output(self, index: int) -> torch.Tensor:
        """Return the sorted weight of a unit's output projection, shape `[out_features, features]`."""
        return self.model_units[index].in_group_order(self._sorted[index][-1].full)

    def materialise(self, policy: PruningPolicy, weights: Mapping[str, torch.Tensor] | None = None) -> PreTrainedModel:
        """Return a physically smaller model with its own weights, in the model class that its checkpoint carries.

        It is on the device of the dense model if it fits, otherwise in host memory.

        Args:
            policy: Number of groups to keep per unit.
            weights: Tensors to use instead of the views and of the dense model's own, by the parameter's name.
        """
        with self.applied(policy, weights) as model:
            # Views share storage with the dense weights; a checkpoint must only hold the kept weights.
            state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        for name, module in self.model.named_modules():
            if isinstance(module, TransposedLinear):
                state[f"{name}.weight"] = state[f"{name}.weight"].t().contiguous()
        config = pruned_config(self.model.config, self.family, policy)
        pruned = pruned_model_class(self.family).from_pretrained(
            None, config=config, state_dict=state, dtype=self.model.dtype
        )
        # from_pretrained sets the name to the folder, which is None here.
        pruned.config._name_or_path = pruned.name_or_path = ""
        pruned.generation_config = self.model.generation_config
        if self.model.device.type != "cuda" or _has_room(self.model.device, pruned.get_memory_footprint()):
            pruned = pruned.to(self.model.device)
        return pruned.eval()


def _has_room(device: torch.device, size: int) -> bool:
    # 25 % headroom for activations.
    return torch.cuda.mem_get_info(device)[0] > 1.25 * size

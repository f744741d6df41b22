"""A model with its groups sorted by importance, so that every policy is a prefix of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..allocation.policy import PruningPolicy
from ..modeling import pruned_config, pruned_model_class
from ..modeling.families import Family, ModelUnit, TransposedLinear
from ..modeling.families.base import permute_blocks
from .ridge import PrefixRidge


@dataclass(frozen=True)
class SortedTensor:
    """A parameter of a projection, its groups sorted.

    Attributes:
        module, name: Where it is.
        full: All of it.
        dim: The dimension whose entries belong to groups.
        blocks: Entries of one group, once for each of the projections that are fused in it.
    """

    module: nn.Module
    name: str
    full: torch.Tensor
    dim: int
    blocks: tuple[int, ...]

    def prefix(self, size: int) -> torch.Tensor:
        """The first `size` groups: a view, or a copy where projections are fused, since their prefixes lie apart."""
        groups = self.full.shape[self.dim] // sum(self.blocks)
        if size == groups:
            return self.full
        parts = self.full.split([groups * block for block in self.blocks], self.dim)
        views = [part.narrow(self.dim, 0, size * block) for part, block in zip(parts, self.blocks)]
        return views[0] if len(views) == 1 else torch.cat(views, self.dim)


def _sort(unit: ModelUnit, order: torch.Tensor) -> list[SortedTensor]:
    found: list[SortedTensor] = []
    for module in dict.fromkeys(part.module for part in unit.slices):
        parts = [part for part in unit.slices if part.module is module]
        dim, blocks = parts[0].dim, tuple(part.block for part in parts)
        for name in parts[0].tensors():
            parameter = getattr(module, name)
            fused = zip(parameter.data.split([unit.unit.groups * block for block in blocks], dim), blocks)
            parameter.data = torch.cat([permute_blocks(rows, dim, block, order) for rows, block in fused], dim)
            found.append(SortedTensor(module, name, parameter.data, dim, blocks))
    return found


class SortedModel:
    """Runs any policy on views `W[:k]` of weights that were sorted once: no masks, no copies.

    Sorting reorders heads and channels of the given model in place, which leaves its function as it was.

    Args:
        model: The dense model. It is reordered in place.
        units: Its units.
        orders: Groups from most to least important, one tensor per unit, each of shape `[groups]`.
        family: The record of its family.
    """

    def __init__(
        self, model: PreTrainedModel, units: Sequence[ModelUnit], orders: Sequence[torch.Tensor], family: Family
    ):
        self.model, self.model_units, self.family = model, list(units), family
        self.units = tuple(unit.unit for unit in units)
        self.ridges: list[PrefixRidge] | None = None
        self._sorted = [_sort(unit, order) for unit, order in zip(units, orders)]
        if model.device.type == "cpu":
            self._leave_the_file()

    def _leave_the_file(self) -> None:
        # Weights from safetensors are pages of the file, all of which stay for as long as one tensor is there.
        own = {tensor.full.data_ptr() for tensors in self._sorted for tensor in tensors}
        for parameter in self.model.parameters():
            if parameter.data_ptr() not in own:
                parameter.data = parameter.data.clone()

    def factorise(self, grams: Iterable[torch.Tensor], ridge_lambda: float, relative: bool) -> None:
        """Factors the ridge regression of every unit, after which outputs can be compensated.

        Args:
            grams: Gram matrices in the sorted order, one per unit. Each is taken when its unit is factored, and may be
                freed then: its factor takes its place.
            ridge_lambda: λ (the paper: 0.01).
            relative: λ is a multiple of `mean(diag H)`; otherwise it is absolute.
        """
        weights = (unit.output.module.weight.data for unit in self.model_units)
        self.ridges = [PrefixRidge(weight, gram, ridge_lambda, relative) for weight, gram in zip(weights, grams)]

    def compensated(self, policy: PruningPolicy) -> dict[int, torch.Tensor]:
        """Output weights after ridge regression, by unit index, each of shape `[out_features, kept columns]`."""
        return {index: self.compensated_output(index, size) for index, size in enumerate(policy.sizes)}

    def compensated_output(self, index: int, size: int) -> torch.Tensor:
        """That of one unit with this many groups, shape `[out_features, kept columns]`."""
        return self.ridges[index].compensated(size * self.model_units[index].output.block)

    @contextmanager
    def applied(
        self, policy: PruningPolicy, outputs: Mapping[int, torch.Tensor] | None = None
    ) -> Iterator[PreTrainedModel]:
        """The model as this policy leaves it, for the time of the context.

        Args:
            policy: What to keep.
            outputs: Weights of output projections that take the place of the views, by unit index.
        """
        try:
            self._set(policy, outputs or {})
            yield self.model
        finally:
            self._set(PruningPolicy.dense(self.units), {})

    def _set(self, policy: PruningPolicy, outputs: Mapping[int, torch.Tensor]) -> None:
        for index, (unit, size) in enumerate(zip(self.model_units, policy.sizes)):
            for tensor in self._sorted[index]:
                getattr(tensor.module, tensor.name).data = tensor.prefix(size)
            if index in outputs:
                unit.output.module.weight.data = outputs[index]
            for owner, attribute, count in unit.counters:
                setattr(owner, attribute, size * count)

    def dense_output(self, index: int) -> torch.Tensor:
        """The sorted weight of a unit's output projection, shape `[out_features, features]`."""
        return self._sorted[index][-1].full

    def materialise(self, policy: PruningPolicy, outputs: Mapping[int, torch.Tensor] | None = None) -> PreTrainedModel:
        """A physically smaller model of its own, in the class that its checkpoint carries.

        It is beside the dense model if there is room for it, otherwise in host memory.

        Args:
            policy: What to keep.
            outputs: Weights of output projections that take the place of the views, by unit index.
        """
        with self.applied(policy, outputs) as model:
            # Views share storage with the dense weights; a checkpoint must own what it keeps and no more.
            state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        for name, module in self.model.named_modules():
            if isinstance(module, TransposedLinear):
                state[f"{name}.weight"] = state[f"{name}.weight"].t().contiguous()
        config = pruned_config(self.model.config, self.family, policy)
        pruned = pruned_model_class(self.family).from_pretrained(
            None, config=config, state_dict=state, dtype=self.model.dtype
        )
        # Transformers has named it after the folder, of which there was none.
        pruned.config._name_or_path = pruned.name_or_path = ""
        pruned.generation_config = self.model.generation_config
        if self.model.device.type != "cuda" or _has_room(self.model.device, pruned.get_memory_footprint()):
            pruned = pruned.to(self.model.device)
        return pruned.eval()


def _has_room(device: torch.device, size: int) -> bool:
    # A quarter more, for what the model will compute.
    return torch.cuda.mem_get_info(device)[0] > 1.25 * size

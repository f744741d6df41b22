"""A model with its items sorted by importance, so that every policy is a prefix of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .calibration import PrefixRidge
from .families import Family, ModelUnit
from .families.base import permute_blocks
from .modeling import pruned_config, pruned_model_class
from .policy import PruningPolicy


class NestedModel:
    """Runs any policy on views `W[:k]` of weights that were sorted once: no masks, no copies.

    Sorting reorders heads and channels of the given model in place, which leaves its function as it was.

    Args:
        model: The dense model. It is reordered in place.
        units: Its units.
        orders: Items from most to least important, one tensor a unit, each of shape `[items]`.
        family: The record of its family.
    """

    def __init__(
        self, model: PreTrainedModel, units: Sequence[ModelUnit], orders: Sequence[torch.Tensor], family: Family
    ):
        self.model, self.model_units, self.family = model, list(units), family
        self.units = tuple(unit.unit for unit in units)
        self.ridges: list[PrefixRidge] | None = None
        self._full: list[list[dict[str, torch.Tensor]]] = []
        for unit, order in zip(units, orders):
            self._full.append([])
            for part in unit.slices:
                for name in part.tensors():
                    parameter = getattr(part.module, name)
                    parameter.data = permute_blocks(parameter.data, part.dim, part.block, order)
                self._full[-1].append({name: getattr(part.module, name).data for name in part.tensors()})

    def compensated(self, policy: PruningPolicy) -> dict[int, torch.Tensor]:
        """Output weights after ridge regression, by unit index, each of shape `[out_features, kept columns]`."""
        return {
            index: ridge.compensated(size * unit.output.block)
            for index, (ridge, unit, size) in enumerate(zip(self.ridges, self.model_units, policy.sizes))
        }

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
            for part, full in zip(unit.slices, self._full[index]):
                for name, tensor in full.items():
                    getattr(part.module, name).data = tensor.narrow(part.dim, 0, size * part.block)
            if index in outputs:
                unit.output.module.weight.data = outputs[index]
            for module, attribute in unit.counters:
                setattr(module, attribute, size * unit.heads_per_item)

    def dense_output(self, index: int) -> torch.Tensor:
        """The sorted weight of a unit's output projection, shape `[out_features, features]`."""
        return self._full[index][-1]["weight"]

    def materialise(self, policy: PruningPolicy, outputs: Mapping[int, torch.Tensor] | None = None) -> PreTrainedModel:
        """A physically smaller model of its own, in the class that its checkpoint carries.

        Args:
            policy: What to keep.
            outputs: Weights of output projections that take the place of the views, by unit index.
        """
        with self.applied(policy, outputs) as model:
            # Views share storage with the dense weights; a checkpoint must own what it keeps and no more.
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        config = pruned_config(self.model.config, self.family, policy)
        pruned = pruned_model_class(self.family).from_pretrained(
            None, config=config, state_dict=state, dtype=self.model.dtype
        )
        pruned.generation_config = self.model.generation_config
        return pruned.to(self.model.device).eval()

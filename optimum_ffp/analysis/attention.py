"""What attention can lose: KV groups or query heads, for every layer whichever costs less loss."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from transformers import PreTrainedModel

from ..allocation.mappings.curves import lower_hull
from ..allocation.policy import GROUP_NAMES, Group, Unit
from ..compression.ridge import PrefixRidge
from ..config import FFPConfig
from ..modeling.families import Family, ModelUnit, find_units
from ..modeling.families.base import permute_blocks
from .fisher import loss_curve
from .gram import Statistics
from .importance import order_groups


logger = logging.getLogger(__name__)
GROUPS: dict[str, Group] = {"kv-groups": "kv_group", "query-heads": "query_head"}


def find_ways(model: PreTrainedModel, family: Family, config: FFPConfig) -> tuple[list[ModelUnit], ...]:
    """Return the units of a dense model for every kind of group that its attention may lose.

    Args:
        model: The dense model.
        family: The family record of the model.
        config: `attention`; the choice is only left open where loss curves can make it.

    Returns:
        One list of units, or two that differ in the units of attention: by KV groups, then by query heads.
    """
    possible = family.attention_groups(model.config)
    wanted = GROUPS.get(config.attention)
    if wanted in possible:
        possible = (wanted,)
    elif config.mapping != "curves":
        possible = possible[:1]
    # KV groups are the default of a preset and of a method, not a choice that somebody made.
    if wanted == "query_head" and wanted not in possible:
        name = model.config._name_or_path or "the model"
        found = "stays whole" if possible == ("all_heads",) else f"loses {GROUP_NAMES[possible[0]]}"
        _warn_once(f"attention {config.attention} isn't possible for {name}; it {found}")
    return tuple(find_units(model, family, config.ffn_multiple, group) for group in possible)


@cache
def _warn_once(message: str) -> None:
    # A prune finds the units for its plan too.
    logger.warning(message)


@dataclass(frozen=True)
class OrderedUnit:
    """A unit with the order of its groups, and what is known of it in that order.

    Attributes:
        unit: The unit.
        order: Groups from most to least important, shape `[groups]` or `[groups, sections]`.
        factor: Factor of its ridge regression (`PrefixRidge`), if it was computed.
        curve: Loss by number of kept groups (`loss_curve`), if it was computed, shape `[groups + 1]`.
    """

    unit: ModelUnit
    order: torch.Tensor
    factor: torch.Tensor | None = None
    curve: np.ndarray | None = None

    def pack(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return named tensors."""
        tensors = {"order": self.order, "group": torch.tensor([*GROUP_NAMES].index(self.unit.unit.group))}
        if self.factor is not None:
            tensors["factor"] = self.factor
        if self.curve is not None:
            tensors["curve"] = torch.from_numpy(self.curve)
        return {prefix + name: tensor for name, tensor in tensors.items()}

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, torch.Tensor], prefix: str, ways: Sequence[ModelUnit], device: torch.device
    ) -> "OrderedUnit":
        """Return the unit from the tensors of `pack`.

        Args:
            tensors: Tensors by name.
            prefix: Prefix of their names.
            ways: The unit by what attention may lose.
            device: Device of the factor.
        """
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        group = [*GROUP_NAMES][int(own["group"])]
        factor = own["factor"].to(device) if "factor" in own else None
        curve = own["curve"].numpy() if "curve" in own else None
        return cls(next(unit for unit in ways if unit.unit.group == group), own["order"].cpu(), factor, curve)


def order_unit(unit: ModelUnit, statistics: Statistics, fisher: torch.Tensor | None, config: FFPConfig) -> OrderedUnit:
    """Order a unit's groups by `config.criterion`, as `order_groups`, where the statistics are.

    The model is not sorted yet.
    """
    weight, block = unit.output.module.weight.data.to(statistics.gram.device), unit.output.block
    return OrderedUnit(unit, order_groups(config.criterion, weight, statistics, block, fisher, unit.sections))


def factorize_unit(
    ordered: OrderedUnit, statistics: Statistics, fisher: torch.Tensor | None, config: FFPConfig
) -> OrderedUnit:
    """Add the ridge factor, and the loss curve if `config.mapping` needs it. The model is not sorted yet.

    Args:
        ordered: The unit with its order.
        statistics: Statistics of the input of its output projection.
        fisher: Fisher matrix of its output, for its loss curve.
        config: λ of ridge regression, and the mapping.
    """
    unit, columns = ordered.unit, ordered.unit.columns(ordered.order)
    ridge = PrefixRidge.of(statistics.gram, config.ridge_lambda, config.ridge_lambda_relative, columns)
    curve = None
    if config.mapping == "curves":
        weight = permute_blocks(unit.output.module.weight.data.to(statistics.gram.device), 1, 1, columns)
        curve = loss_curve(weight, ridge, fisher, unit.output.block)
    return replace(ordered, factor=ridge.factor, curve=curve)


def choose_groups(candidates: Sequence[OrderedUnit]) -> OrderedUnit:
    """Return the candidate with the lowest mean loss (`mean_losses`).

    Args:
        candidates: Units of one layer's attention by different groups, with their loss curves, or a single unit.
    """
    if len(candidates) == 1:
        return candidates[0]
    losses = mean_losses([one.unit.unit for one in candidates], [one.curve for one in candidates])
    return candidates[int(np.argmin(losses))]


def mean_losses(units: Sequence[Unit], curves: Sequence[np.ndarray]) -> list[float]:
    """Return the mean of every curve's lower hull over the removed parameters that all units can lose.

    Args:
        units: Units of one layer's attention, by different groups.
        curves: Loss by number of kept groups, each of shape `[groups + 1]`. A unit keeps at least one group.
    """
    reach = min((unit.groups - 1) * unit.group_parameters for unit in units)
    means = []
    for unit, curve in zip(units, curves):
        removed = np.arange(unit.groups) * unit.group_parameters
        losses = np.asarray(curve)[unit.groups - np.arange(unit.groups)]
        corners = lower_hull(removed, losses)
        places = np.append(removed[corners][removed[corners] < reach], reach)
        heights = np.interp(places, removed[corners], losses[corners])
        means.append(float(np.diff(places) @ (heights[1:] + heights[:-1]) / (2 * reach)))
    return means

"""Prunable groups of attention: KV groups or query heads, chosen per layer by the lower loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..allocation.knapsack import lower_hull
from ..allocation.policy import GROUP_NAMES, Group, Unit
from ..compression.ridge import PrefixRidge
from ..config import FFPConfig
from ..hub.record import policy_rows
from ..modeling.families import Family, ModelUnit, find_units
from ..plan import Plan, is_fisher_weighted
from .fisher import loss_curve
from .gram import Statistics
from .importance import order_groups


logger = logging.get_logger(__name__)
GROUPS: dict[str, Group] = {"kv-groups": "kv_group", "query-heads": "query_head"}


def find_unit_variants(
    model: PreTrainedModel, family: Family, config: FFPConfig, attention: str
) -> tuple[list[ModelUnit], ...]:
    """Return the units of a dense model, once for every kind of attention group that can be pruned.

    Args:
        model: The dense model.
        family: The family record of the model.
        config: `policy`, whose groups the units have (`read_policy` checks the rest), and `multiple_of`.
        attention: What to remove, as the option. The choice is left open only if loss curves can make it.

    Returns:
        One list of units, or two that differ in the units of attention: by KV groups, then by query heads.
    """
    possible: tuple[Group, ...] = family.attention_groups(model.config)
    rows = getattr(model.config, "pruned_units", ())
    # An attention that was pruned before goes on to lose the same groups.
    lost: dict[int, Group] = {
        row["layer"]: row["group"] for row in rows if row["unit"] == "attention" and row["kept"] < row["items"]
    }
    if config.policy:
        policy = [row for row in policy_rows(config.policy) if row.get("unit") == "attention"]
        kept: dict[int, Group] = {row.get("layer", -1): row.get("group", "kv_group") for row in policy}
        return (find_units(model, family, config.multiple_of, kept | lost),)
    wanted = GROUPS.get(attention)
    if wanted in possible:
        possible = (wanted,)
    elif config.mapping != "curves":
        possible = possible[:1]
    # KV groups may be the default of a preset or method, so only query heads were chosen explicitly.
    if wanted == "query_head" and wanted not in possible:
        name = model.config._name_or_path or "the model"
        outcome = "is not pruned" if possible == ("all_heads",) else f"loses {GROUP_NAMES[possible[0]]}"
        # Once, since the plan of a prune finds the units too.
        logger.warning_once(f"attention {attention} isn't possible for {name}; it {outcome}")
    layers = range(model.config.num_hidden_layers)
    return tuple(
        find_units(model, family, config.multiple_of, {layer: lost.get(layer, group) for layer in layers})
        for group in possible
    )


@dataclass(frozen=True)
class OrderedUnit:
    """A unit with the order of its groups, and its ridge factor and loss curve in that order.

    Attributes:
        unit: The unit.
        order: Groups from most to least important, shape `[groups]` or `[groups, sections]`.
        factor: Factor of its ridge regression (`PrefixRidge`); empty if it isn't needed.
        curve: Loss by number of kept groups (`loss_curve`), shape `[groups + 1]`; empty if it isn't needed.
    """

    unit: ModelUnit
    order: torch.Tensor
    factor: torch.Tensor
    curve: np.ndarray

    def pack(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return named tensors."""
        tensors = {
            "order": self.order,
            "group": torch.tensor([*GROUP_NAMES].index(self.unit.unit.group)),
            "factor": self.factor,
            "curve": torch.from_numpy(self.curve),
        }
        return {prefix + name: tensor for name, tensor in tensors.items()}

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, torch.Tensor], prefix: str, variants: Sequence[ModelUnit], device: torch.device
    ) -> "OrderedUnit":
        """Return the unit from the tensors of `pack`: one of `variants`, by its kind of group, with its factor."""
        entry = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        group = [*GROUP_NAMES][int(entry["group"])]
        return cls(
            unit=next(unit for unit in variants if unit.unit.group == group),
            order=entry["order"].cpu(),
            factor=entry["factor"].to(device),
            curve=entry["curve"].numpy(),
        )


def order_unit(unit: ModelUnit, statistics: Statistics, fisher: torch.Tensor, plan: Plan) -> OrderedUnit:
    """Order a unit's groups by `plan.criterion`, and compute its ridge factor and loss curve if they are needed.

    This is done on the device of the statistics. The model is not sorted yet. The Fisher matrix is only read if the
    plan needs it.
    """
    weight, block = unit.projection.weight.data.to(statistics.gram.device), unit.output.block
    order = order_groups(
        plan.criterion,
        weight,
        statistics,
        block=block,
        fisher=fisher if is_fisher_weighted(plan.criterion) else None,
        sections=unit.sections,
        options=plan.options.get("criterion"),
    )
    curve = np.empty(0)
    if not plan.needs_factors:
        return OrderedUnit(unit, order, torch.empty(0), curve)
    columns = unit.columns(order)
    ridge = PrefixRidge.of(statistics.gram, plan.ridge_lambda, columns)
    if plan.mapping == "curves":
        curve = loss_curve(weight.index_select(1, columns.to(weight.device)), ridge, fisher, block)
    return OrderedUnit(unit, order, ridge.factor, curve)


def choose_variant(candidates: Sequence[OrderedUnit]) -> OrderedUnit:
    """Return the unit of a layer's attention with the groups of the lowest mean loss (`mean_losses`)."""
    if len(candidates) == 1:
        return candidates[0]
    losses = mean_losses([ordered.unit.unit for ordered in candidates], [ordered.curve for ordered in candidates])
    return candidates[int(np.argmin(losses))]


def mean_losses(units: Sequence[Unit], curves: Sequence[np.ndarray]) -> list[float]:
    """Return the mean of every curve's lower hull over the range of removed parameters that all units reach.

    Args:
        units: Units of one layer's attention, by different groups.
        curves: Loss by number of kept groups, each of shape `[groups + 1]`. A unit keeps at least one group.
    """
    most_removed = min((unit.groups - 1) * unit.group_parameters for unit in units)
    means = []
    for unit, curve in zip(units, curves):
        removed = np.arange(unit.groups) * unit.group_parameters
        losses = np.asarray(curve)[unit.groups - np.arange(unit.groups)]
        corners = lower_hull(removed, losses)
        points = np.append(removed[corners][removed[corners] < most_removed], most_removed)
        hull = np.interp(points, removed[corners], losses[corners])
        means.append(float(np.diff(points) @ (hull[1:] + hull[:-1]) / (2 * most_removed)))
    return means

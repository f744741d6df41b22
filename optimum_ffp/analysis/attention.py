"""Prunable groups of attention: KV groups or query heads, chosen per layer by the lower loss."""

from collections.abc import Sequence

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
    # An attention that was pruned before goes on to lose the same groups.
    rows = [row for row in getattr(model.config, "pruned_units", ()) if row.unit == "attention"]
    lost: dict[int, Group] = {row.layer: row.group for row in rows if row.kept < row.items}
    if config.policy:
        kept: dict[int, Group] = {
            row.layer: row.group for row in policy_rows(config.policy) if row.unit == "attention"
        }
        return (find_units(model, family, config.multiple_of, kept | lost),)
    possible, wanted = family.attention_groups(model.config), GROUPS.get(attention)
    # KV groups may be the default of a preset or method, so only query heads were chosen explicitly.
    if wanted == "query_head" and wanted not in possible:
        name = model.config._name_or_path or "the model"
        outcome = "is not pruned" if possible == ("all_heads",) else f"loses {GROUP_NAMES[possible[0]]}"
        # Once, since the plan of a prune finds the units too.
        logger.warning_once(f"attention {attention} isn't possible for {name}; it {outcome}")
    if wanted in possible or config.mapping != "curves":
        possible = (wanted if wanted in possible else possible[0],)
    layers = range(model.config.num_hidden_layers)
    return tuple(
        find_units(model, family, config.multiple_of, {layer: lost.get(layer, group) for layer in layers})
        for group in possible
    )


def order_unit(
    units: Sequence[ModelUnit], statistics: Statistics, fisher: torch.Tensor, plan: Plan
) -> dict[str, torch.Tensor]:
    """Order the groups of a unit by `plan.criterion`, and choose the kind of group with the lowest mean loss.

    This is done on the device of the statistics, before the model is sorted.

    Args:
        units: The unit by kinds of groups.
        statistics: Statistics of its input.
        fisher: Fisher matrix of its output; only read if the plan needs it.
        plan: Criterion and calibration.

    Returns:
        `order`, groups from most to least important, shape `[groups]` or `[groups, sections]`; `group`, the index of
        their kind in `GROUP_NAMES`; `factor` of `PrefixRidge` and `curve` of `loss_curve`, empty if not needed.
    """
    candidates = [_order(unit, statistics, fisher, plan) for unit in units]
    if len(candidates) == 1:
        return candidates[0]
    losses = mean_losses([unit.unit for unit in units], [one["curve"].numpy() for one in candidates])
    return candidates[int(np.argmin(losses))]


def _order(unit: ModelUnit, statistics: Statistics, fisher: torch.Tensor, plan: Plan) -> dict[str, torch.Tensor]:
    weight, block = unit.projection.weight.data.to(statistics.gram.device), unit.output.block
    order = order_groups(
        plan.function("criterion"),
        weight,
        statistics,
        block=block,
        fisher=fisher if is_fisher_weighted(plan.criterion) else None,
        sections=unit.sections,
    )
    factor, curve = torch.empty(0), np.empty(0)
    if plan.needs_factors:
        columns = unit.columns(order)
        ridge = PrefixRidge.of(statistics.gram, plan.ridge_lambda, columns)
        factor = ridge.factor
        if plan.mapping == "curves":
            curve = loss_curve(weight.index_select(1, columns.to(weight.device)), ridge, fisher, block)
    group = torch.tensor([*GROUP_NAMES].index(unit.unit.group))
    return {"order": order, "group": group, "factor": factor, "curve": torch.from_numpy(curve)}


def mean_losses(units: Sequence[Unit], curves: Sequence[np.ndarray]) -> list[float]:
    """Return the mean of every loss curve's lower hull over the range of removed parameters that all units reach.

    Units are those of one layer's attention by different groups, and keep at least one group.
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

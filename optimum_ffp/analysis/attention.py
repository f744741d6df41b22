"""What attention can lose: KV groups or query heads, for every layer whichever costs less loss."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..allocation.mappings.curves import lower_hull
from ..allocation.policy import Group, Unit
from ..compression.ridge import PrefixRidge
from ..config import FFPConfig
from ..modeling.families import Family, ModelUnit, find_units
from ..modeling.families.base import permute_blocks
from .fisher import loss_curve
from .gram import Statistics
from .importance import order_groups


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
    return tuple(find_units(model, family, config.ffn_multiple, group) for group in possible)


def order_unit(
    unit: ModelUnit, statistics: Statistics, fisher: torch.Tensor | None, config: FFPConfig
) -> torch.Tensor:
    """Return the order of a unit's groups by `config.criterion`, as `order_groups`."""
    output = unit.output
    return order_groups(config.criterion, output.module.weight, statistics, output.block, fisher, unit.sections)


def choose_groups(
    candidates: Sequence[tuple[ModelUnit, torch.Tensor]],
    statistics: Statistics,
    fisher: torch.Tensor | None,
    config: FFPConfig,
) -> tuple[ModelUnit, torch.Tensor]:
    """Return the candidate with the lowest mean loss (`mean_losses`).

    Args:
        candidates: Units of one layer's attention by different groups, each with the order of its groups. The model is
            not sorted yet.
        statistics: Statistics of the input of its output projection.
        fisher: Fisher matrix of its output; without it curves are of the output error, in the same unit for all.
        config: λ of ridge regression.
    """
    curves = []
    for unit, order in candidates:
        columns, weight = unit.columns(order), unit.output.module.weight.data
        gram = statistics.permuted(columns, 1).gram
        ridge = PrefixRidge(
            permute_blocks(weight, 1, 1, columns), gram, config.ridge_lambda, config.ridge_lambda_relative
        )
        curves.append(loss_curve(ridge, fisher, unit.output.block))
    losses = mean_losses([unit.unit for unit, _ in candidates], curves)
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

"""Preparation of the sorted model, its ridge factors and loss curves from calibration windows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..allocation.mappings.curves import CurveMapping
from ..compression.sorted_model import SortedModel
from ..config import FFPConfig
from ..modeling.families import Family, ModelUnit
from ..options import GRADIENT_COST
from ..utils.batch_size import with_halving_batches
from ..utils.precision import autocast_dtype
from ..utils.profiling import StageMeter
from ..utils.resume import Journal
from .attention import choose_groups, order_unit
from .curve_estimation import measure_slopes
from .fisher import collect_fisher, loss_curve
from .gram import Statistics, collect_statistics, describe_shortage, matrix_device, pack, unpack


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A sorted model and its loss curves, shared by all searches.

    Attributes:
        sorted_model: The sorted model, with its ridge factors if the config needs them.
        curves: Loss curves of all units, if the config's mapping needs them.
    """

    sorted_model: SortedModel
    curves: CurveMapping | None


def prepare(
    model: PreTrainedModel,
    ways: Sequence[Sequence[ModelUnit]],
    family: Family,
    config: FFPConfig,
    windows: torch.Tensor,
    meter: StageMeter,
    journal: Journal,
) -> Prepared:
    """Run the calibration windows through the dense model, sort its groups and factor the ridge regressions.

    Args:
        model: The dense model. Its heads and channels are reordered in place.
        ways: The units of the model, as `find_ways` returns them. Of two ways the better is chosen per layer.
        family: The family record of the model.
        config: Criterion, mapping, calibration.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        meter: Measures time and peak memory of every stage.
        journal: Saves the measurements.
    """
    # The paper's ridge regression and scores weigh all tokens alike.
    relative = family.normalised_outputs and config.preset != "paper"
    units = ways[0]
    if shortage := describe_shortage([unit.output.module.in_features for unit in units], windows.numel()):
        logger.warning(shortage)
    with meter.stage("statistics", windows.numel()):
        dtype = autocast_dtype(model, config.search_dtype)
        device = matrix_device(model, units)

        def collect(batch_size: int) -> dict[str, torch.Tensor]:
            return pack(collect_statistics(model, units, windows, batch_size, device, dtype, relative))

        kept = journal.tensors("statistics", lambda: with_halving_batches(collect, config.batch_size))
        statistics = unpack(kept, device)
        del kept
    fishers: list[torch.Tensor | None] = [None] * len(units)
    if config.needs_fishers:
        seen = windows[: config.fisher_samples]
        with meter.stage("fisher", GRADIENT_COST * seen.numel()):
            layers = model.base_model.get_submodule(family.layers)

            def differentiate(_: int) -> list[torch.Tensor]:
                return collect_fisher(model, units, layers, seen, config.seed, dtype, relative)

            fishers = _by_unit(journal, "fisher", lambda: with_halving_batches(differentiate, 1))
    with meter.stage("importance"):
        units, orders = _order(ways, statistics, fishers, config, journal)
    sorted_model = SortedModel(model, units, orders, family)
    if not config.needs_factors:
        return Prepared(sorted_model, None)

    with meter.stage("factorisation"):
        # Each Gram matrix is freed once it is factored, so that two sets of matrices never exist at once.
        grams = (statistics.pop(0).permuted(unit.columns(order), 1).gram for unit, order in zip(units, orders))
        sorted_model.factorise(grams, config.ridge_lambda, config.ridge_lambda_relative)
        if config.mapping != "curves":
            return Prepared(sorted_model, None)
        curves = [
            loss_curve(ridge, fisher, unit.output.block)
            for ridge, fisher, unit in zip(sorted_model.ridges, fishers, units)
        ]
    if not config.grad:
        probed = windows[: config.slope_samples]
        # The dense model, and every unit pruned on its own.
        with meter.stage("slopes", (1 + len(units)) * probed.numel()):
            slopes = journal.value("slopes", lambda: measure_slopes(sorted_model, probed, curves, dtype))
            curves = [slope * curve for slope, curve in zip(slopes, curves)]
    return Prepared(sorted_model, CurveMapping(curves))


def _order(
    ways: Sequence[Sequence[ModelUnit]],
    statistics: Sequence[Statistics],
    fishers: Sequence[torch.Tensor | None],
    config: FFPConfig,
    journal: Journal,
) -> tuple[list[ModelUnit], list[torch.Tensor]]:
    """Return the units, of two ways the better one, and the order of their groups."""
    units, measured = list(ways[0]), list(zip(statistics, fishers))
    orders = _by_unit(
        journal, "importance", lambda: [order_unit(unit, *found, config) for unit, found in zip(units, measured)]
    )
    if len(ways) > 1:
        members = [index for index, unit in enumerate(units) if unit.unit.kind == "attention"]
        others = _by_unit(
            journal,
            "importance-query-heads",
            lambda: [order_unit(ways[1][index], *measured[index], config) for index in members],
        )
        for index, other in zip(members, others):
            candidates = (units[index], orders[index]), (ways[1][index], other)
            units[index], orders[index] = choose_groups(candidates, *measured[index], config)
    return units, orders


def _by_unit(journal: Journal, name: str, measure: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    kept = journal.tensors(name, lambda: {str(index): tensor for index, tensor in enumerate(measure())})
    return [kept[str(index)] for index in range(len(kept))]

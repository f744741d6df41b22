"""Preparation of the sorted model, its ridge factors and loss curves from calibration windows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..allocation.mappings.curves import CurveMapping
from ..compression.ridge import PrefixRidge
from ..compression.sorted_model import SortedModel
from ..config import FFPConfig
from ..engine import LayerRunner, LayerwiseModel
from ..errors import FFPError
from ..modeling.families import ModelUnit
from ..modeling.families.base import members_of
from ..utils import processes
from ..utils.batch_size import with_halving_batches
from ..utils.cholesky import algebra_device
from ..utils.precision import autocast_dtype
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from ..utils.tensors import pin
from .attention import OrderedUnit, choose_groups, factorize_unit, order_unit
from .fisher import collect_fisher
from .gram import Statistics, collect_statistics, describe_shortage, matrix_device


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
    layerwise: LayerwiseModel,
    ways: Sequence[Sequence[ModelUnit]],
    config: FFPConfig,
    windows: torch.Tensor,
    meter: StageMeter,
    journal: Journal,
) -> Prepared:
    """Run the calibration windows through the dense model, sort its groups and factor the ridge regressions.

    Args:
        layerwise: The dense model. Its heads and channels are reordered.
        ways: The units of the model, as `find_ways` returns them. Of two ways the better is chosen per layer.
        config: Criterion, mapping, calibration.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        meter: Measures time and peak memory of every stage.
        journal: Saves the measurements.
    """
    if layerwise.is_sorted:
        raise FFPError(
            "the heads and channels of this model were sorted by a prune that did not finish; load it again: make "
            "another FFPPruner"
        )
    if shortage := describe_shortage([unit.output.module.in_features for unit in ways[0]], windows.numel()):
        logger.warning(shortage)
    dtype = autocast_dtype(layerwise.model, config.search_dtype)
    relative = layerwise.family.normalized_outputs and config.relative_outputs
    fishers: list[torch.Tensor | None] = [None] * len(ways[0])
    if config.needs_fishers:
        seen = windows[: config.fisher_samples]
        with meter.stage("fisher"):
            fishers = _fishers(layerwise, ways[0], seen, config.seed, dtype, relative, journal)
    preparation = _Preparation(
        layerwise, ways, config, fishers, dtype, relative, meter, journal.part(config.needs_factors)
    )
    if processes.count() == 1:
        found = with_halving_batches(partial(preparation.run, windows), config.batch_size)
    else:
        # The others could not know that one of them starts again.
        found = preparation.run(windows, config.batch_size)
    del fishers
    ridges = [PrefixRidge(one.factor) for one in found] if config.needs_factors else None
    layerwise.is_sorted = True
    sorted_model = SortedModel(layerwise, [one.unit for one in found], [one.order for one in found], ridges)
    if config.mapping != "curves":
        return Prepared(sorted_model, None)
    return Prepared(sorted_model, CurveMapping([one.curve for one in found]))


def _fishers(
    layerwise: LayerwiseModel,
    units: Sequence[ModelUnit],
    windows: torch.Tensor,
    seed: int,
    dtype: torch.dtype | None,
    relative: bool,
    journal: Journal,
) -> list[torch.Tensor | None]:
    """Return the Fisher matrices of all units in the main process, which orders them, and `None` in the others."""

    def keep(index: int, matrix: torch.Tensor | None = None) -> torch.Tensor | None:
        found = layerwise.counter.tensors(journal, f"fisher-{index}", lambda: {"fisher": matrix})["fisher"]
        return found if processes.is_main() else None

    if all(journal.has(f"fisher-{index}") for index in range(len(units))):
        return [keep(index) for index in range(len(units))]
    return collect_fisher(layerwise, units, windows, seed, dtype, relative, keep)


@dataclass
class _Preparation:
    """Orders and factors the units layer by layer, while the Gram matrices of a layer are there.

    Processes share the windows; the main one orders and factors.
    """

    layerwise: LayerwiseModel
    ways: Sequence[Sequence[ModelUnit]]
    config: FFPConfig
    fishers: list[torch.Tensor | None]
    dtype: torch.dtype | None
    relative: bool
    meter: StageMeter
    journal: Journal
    # By layer: what is finished stays finished when memory runs out in a later one.
    finished: dict[int, list[OrderedUnit]] = field(default_factory=dict)

    def run(self, windows: torch.Tensor, batch_size: int) -> list[OrderedUnit]:
        """Return all units in order."""
        layers = range(len(self.layerwise.layers))
        home = matrix_device(self.layerwise, self.ways[0])
        missing = [index for index in layers if index not in self.finished and not self.journal.has(_entry(index))]
        with progress_bar(len(layers), "Statistics", "layer") as bar:
            if missing:
                with self.meter.stage("statistics"):
                    states, arguments = self.layerwise.enter(windows[processes.share(len(windows))])
                for index, layer in self.layerwise.walk():
                    runner = self.layerwise.runner(layer, arguments[index], self.dtype)
                    if index in missing:
                        with self.meter.stage("statistics"):
                            statistics = self._collect(index, runner, states, windows.numel(), batch_size)
                        order = partial(self._order, index, statistics)
                        self._keep(index, home, partial(processes.tensors_on_main, order))
                        del statistics, order
                    else:
                        with self.meter.stage("statistics"):
                            runner.advance(states, batch_size)
                    bar.update()
                    if index == missing[-1]:
                        break
            with self.meter.stage("statistics"):
                for index in layers:
                    if index not in self.finished:
                        self._keep(index, home, dict)
        return [one for index in layers for one in self.finished[index]]

    def _keep(self, layer: int, home: torch.device, measure: Callable[[], dict[str, torch.Tensor]]) -> None:
        kept = self.layerwise.counter.tensors(self.journal, _entry(layer), measure)
        members = members_of(self.ways[0], layer)
        self.finished[layer] = [
            OrderedUnit.unpack(kept, f"{member}.", [way[member] for way in self.ways], home) for member in members
        ]
        borrowed = self.layerwise.device.type == "cuda" and home.type == "cpu" and not self.journal.on_disk
        if borrowed and self.config.needs_factors:
            # Pinned, since the GPU gets one factor at a time.
            self.finished[layer] = [replace(one, factor=pin(one.factor)) for one in self.finished[layer]]

    def _collect(
        self, layer: int, runner: LayerRunner, states: torch.Tensor, tokens: int, batch_size: int
    ) -> list[Statistics]:
        """Return the statistics of the units of one layer, and advance the states."""
        units = [self.ways[0][member] for member in members_of(self.ways[0], layer)]
        return collect_statistics(runner, units, states, tokens, batch_size, self.relative)

    def _order(self, layer: int, statistics: list[Statistics]) -> dict[str, torch.Tensor]:
        """Order and factor the units of one layer."""
        config, members = self.config, members_of(self.ways[0], layer)
        packed: dict[str, torch.Tensor] = {}
        for member in members:
            found = statistics.pop(0)
            measured = found.to(algebra_device(found.gram.device, len(found.gram))), self.fishers[member]
            del found
            # Ways differ in the units of attention.
            ways = {way[member].unit: way[member] for way in self.ways}
            with self.meter.stage("importance"):
                ordered = [order_unit(unit, *measured, config) for unit in ways.values()]
            if config.needs_factors:
                with self.meter.stage("factorization"):
                    ordered = [factorize_unit(one, *measured, config) for one in ordered]
            packed |= choose_groups(ordered).pack(f"{member}.")
        return packed


def _entry(layer: int) -> str:
    return f"layer-{layer}"

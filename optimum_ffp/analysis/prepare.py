"""Preparation of the sorted model, its ridge factors and loss curves from calibration windows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..allocation.mappings.curves import CurveMapping
from ..compression.ridge import PrefixRidge
from ..compression.sorted_model import SortedModel
from ..data import Windows, with_first_tokens
from ..engine import HiddenStates, LayerwiseModel
from ..modeling.families import Mixture, ModelUnit, units_of_layer
from ..plan import Plan
from ..utils import processes
from ..utils.cholesky import algebra_device
from ..utils.precision import autocast_dtype
from ..utils.profiling import StageMeter
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from ..utils.tensors import pin
from .attention import OrderedUnit, choose_variant, order_unit
from .experts import order_experts
from .fisher import collect_fisher
from .gram import Statistics, collect_statistics, matrix_device


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A sorted model and its loss curves, shared by all searches.

    Attributes:
        sorted_model: The sorted model, with its ridge factors if the plan needs them.
        curves: Loss curves of all units, if the plan's mapping needs them.
        rare_experts: By layer, experts with too few tokens (`order_experts`).
    """

    sorted_model: SortedModel
    curves: CurveMapping | None
    rare_experts: dict[str, list[int]] = field(default_factory=dict)


def prepare(
    layerwise: LayerwiseModel,
    variants: Sequence[Sequence[ModelUnit]],
    plan: Plan,
    windows: Windows,
    meter: StageMeter,
    journal: Journal,
) -> Prepared:
    """Run the calibration windows through the dense model, sort its groups and factor the ridge regressions.

    Args:
        layerwise: The dense model. Its heads and channels are reordered.
        variants: The units, as `find_unit_variants` returns them. Of two variants the better is chosen per layer.
        plan: Criterion, mapping, calibration.
        windows: Calibration windows.
        meter: Measures time and peak memory of every stage.
        journal: Saves the measurements.
    """
    channels, tokens = max(unit.width for unit in variants[0]), windows.tokens.numel()
    if channels > tokens:
        logger.warning(
            f"units have more channels (up to {channels:,}) than there are calibration tokens ({tokens:,}), too few "
            "to tell them apart; use more text, or raise num_samples or seq_len"
        )
    if isinstance(layerwise.family, Mixture):
        with meter.stage("statistics"):
            orders, rare = order_experts(layerwise, variants[0], plan, windows.tokens, journal)
        return Prepared(SortedModel(layerwise, variants[0], orders), curves=None, rare_experts=rare)
    preparation = _Preparation(layerwise, variants, plan, windows, meter, journal)
    if plan.needs_fishers:
        with meter.stage("fisher"):
            preparation.collect_fishers()
    units = preparation.order_units()
    del preparation
    sorted_model = SortedModel(
        layerwise,
        units=[ordered.unit for ordered in units],
        orders=[ordered.order for ordered in units],
        ridges=[PrefixRidge(ordered.factor) for ordered in units] if plan.needs_factors else (),
    )
    curves = CurveMapping([ordered.curve for ordered in units]) if plan.mapping == "curves" else None
    return Prepared(sorted_model, curves)


@dataclass
class _Preparation:
    """Orders and factors the units, with the statistics of one layer in memory at a time; fields as for `prepare`."""

    layerwise: LayerwiseModel
    variants: Sequence[Sequence[ModelUnit]]
    plan: Plan
    windows: Windows
    meter: StageMeter
    journal: Journal

    def __post_init__(self) -> None:
        self.dtype = autocast_dtype(self.layerwise.model, self.plan.search_dtype)
        self.relative = self.layerwise.family.normalized_outputs and self.plan.relative_outputs
        self.matrix_device = matrix_device(self.layerwise, self.variants[0])
        self.layers = range(len(self.layerwise.layers))
        self.layer_journal = self.journal.part(self.plan.needs_factors)
        # By unit; empty in all processes but the main one, which orders them, and if they aren't needed.
        self.fishers = [torch.empty(0)] * len(self.variants[0])

    def collect_fishers(self) -> None:
        """Collect the Fisher matrices of all units, or read them from the journal."""

        def keep(index: int, matrix: torch.Tensor) -> torch.Tensor:
            entry = self.layerwise.counter.tensors(self.journal, f"fisher-{index}", lambda: {"fisher": matrix})
            return entry["fisher"] if processes.is_main() else torch.empty(0)

        units = self.variants[0]
        if all(self.journal.has(f"fisher-{index}") for index in range(len(units))):
            self.fishers = [keep(index, torch.empty(0)) for index in range(len(units))]
        else:
            self.fishers = collect_fisher(
                self.layerwise,
                units,
                self.windows.tokens[: self.plan.fisher_samples],
                seed=self.plan.seed,
                dtype=self.dtype,
                relative=self.relative,
                keep=keep,
            )

    def order_units(self) -> list[OrderedUnit]:
        """Return all units with their groups ordered."""
        missing = [layer for layer in self.layers if not self.layer_journal.has(f"layer-{layer}")]
        units = self._measure(missing) if missing else {}
        with self.meter.stage("statistics"):
            units |= {layer: self._units(layer, dict) for layer in self.layers if layer not in units}
        return [unit for layer in self.layers for unit in units[layer]]

    def _measure(self, missing: Sequence[int]) -> dict[int, list[OrderedUnit]]:
        """Run the windows through all layers up to the last missing one, and return the units of the missing ones."""
        units = {}
        with self.meter.stage("statistics"):
            share = self.windows.tokens[processes.share(len(self.windows))]
            sequences = with_first_tokens(share, self.plan.first_tokens, self.windows.start_token)
            states = HiddenStates(self.layerwise, sequences, self.dtype)
        with progress_bar(len(self.layers), "Statistics", "layer") as bar:
            for index, layer in self.layerwise.iter_layers():
                members = units_of_layer(self.variants[0], index) if index in missing else []
                with self.meter.stage("statistics"):
                    statistics = collect_statistics(
                        partial(states.advance, layer, index, self.plan.batch_size * self.windows.length),
                        [self.variants[0][member] for member in members],
                        self.relative,
                    )
                if members:
                    measure = partial(processes.tensors_on_main, partial(self._order, index, statistics))
                    units[index] = self._units(index, measure)
                    del measure
                del statistics
                bar.update()
                if index == missing[-1]:
                    break
        return units

    def _units(self, layer: int, measure: Callable[[], dict[str, torch.Tensor]]) -> list[OrderedUnit]:
        """Return the ordered units of a layer, from the journal if they are saved."""
        entry = self.layerwise.counter.tensors(self.layer_journal, f"layer-{layer}", measure)
        units = [
            OrderedUnit.unpack(entry, f"{member}.", [variant[member] for variant in self.variants], self.matrix_device)
            for member in units_of_layer(self.variants[0], layer)
        ]
        copies_factors = self.layerwise.device.type == "cuda" and self.matrix_device.type == "cpu"
        if copies_factors and self.plan.needs_factors and not self.journal.on_disk:
            # Pinned, since factors are copied to the GPU one at a time.
            units = [replace(ordered, factor=pin(ordered.factor)) for ordered in units]
        return units

    def _order(self, layer: int, statistics: list[Statistics]) -> dict[str, torch.Tensor]:
        """Order and factor the units of one layer."""
        packed = {}
        for member in units_of_layer(self.variants[0], layer):
            unit_statistics, fisher = statistics.pop(0), self.fishers[member]
            device = algebra_device(unit_statistics.gram.device, len(unit_statistics.gram))
            unit_statistics = unit_statistics.to(device)
            # Variants differ in attention only.
            units = {variant[member].unit: variant[member] for variant in self.variants}
            with self.meter.stage("importance"):
                ordered = [order_unit(unit, unit_statistics, fisher, self.plan) for unit in units.values()]
            packed |= choose_variant(ordered).pack(f"{member}.")
            del unit_statistics
        return packed

"""Preparation of the sorted model, its ridge factors and loss curves from calibration windows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import torch

from ..allocation.mappings.curves import CurveMapping
from ..allocation.policy import GROUP_NAMES
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
from .attention import order_unit
from .experts import order_experts
from .fisher import collect_fisher
from .gram import Statistics, collect_statistics, matrix_device


logger = logging.getLogger(__name__)
# A unit, the order of its groups, its ridge factor and its loss curve, as `order_unit` returns them.
OrderedUnit = tuple[ModelUnit, torch.Tensor, torch.Tensor, np.ndarray]


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


@dataclass
class Preparation:
    """Sorts and factors the units by calibration windows, with the statistics of one layer in memory at a time.

    Attributes:
        layerwise: The dense model. Its heads and channels are reordered.
        variants: The units, as `find_unit_variants` returns them. Of two variants the better is chosen per layer.
        plan: Criterion, mapping, calibration.
        windows: Calibration windows.
        meter: Measures every stage.
        journal: Saves the measurements.
    """

    layerwise: LayerwiseModel
    variants: Sequence[Sequence[ModelUnit]]
    plan: Plan
    windows: Windows
    meter: StageMeter
    journal: Journal

    def __post_init__(self) -> None:
        self.dtype = autocast_dtype(self.layerwise.model, self.plan.search_dtype)
        self.relative = self.layerwise.family.normalized_outputs and self.plan.relative_outputs
        self.layer_journal = self.journal.part(self.plan.needs_factors)
        # By unit; only the main process, which orders the groups, keeps them.
        self.fishers = [torch.empty(0)] * len(self.variants[0])

    def run(self) -> Prepared:
        """Measure, sort and factor; call it once, since it frees the Fisher matrices."""
        units = self.variants[0]
        if self.plan.vocabulary_alone:
            orders = [torch.arange(unit.unit.groups) for unit in units]
            return Prepared(SortedModel(self.layerwise, units, orders), curves=None)
        channels, tokens = max(unit.width for unit in units), self.windows.tokens.numel()
        if channels > tokens:
            logger.warning(
                f"units have more channels (up to {channels:,}) than there are calibration tokens ({tokens:,}), too "
                "few to tell them apart; use more text, or raise num_samples or seq_len"
            )
        if isinstance(self.layerwise.family, Mixture):
            with self.meter.stage("statistics"):
                orders, rare = order_experts(self.layerwise, units, self.plan, self.windows.tokens, self.journal)
            return Prepared(SortedModel(self.layerwise, units, orders), curves=None, rare_experts=rare)
        self.matrix_device = matrix_device(self.layerwise, self.variants[0])
        if self.plan.needs_fishers:
            with self.meter.stage("fisher"):
                self.collect_fishers()
        units, orders, factors, curves = zip(*self.order_units())
        self.fishers.clear()
        ridges = [PrefixRidge(factor) for factor in factors] if self.plan.needs_factors else ()
        mapping = CurveMapping(curves) if self.plan.mapping == "curves" else None
        return Prepared(SortedModel(self.layerwise, units, orders, ridges), mapping)

    def collect_fishers(self) -> None:
        """Collect the Fisher matrices of all units, or read them from the journal."""

        def keep(index: int, matrix: torch.Tensor) -> torch.Tensor:
            entry = self.journal.tensors(f"fisher-{index}", lambda: {"fisher": matrix})
            return entry["fisher"] if processes.is_main() else torch.empty(0)

        indices = range(len(self.variants[0]))
        if all(self.journal.has(f"fisher-{index}") for index in indices):
            self.fishers = [keep(index, torch.empty(0)) for index in indices]
            return
        self.fishers = collect_fisher(
            self.layerwise,
            self.variants[0],
            self.windows.tokens[: self.plan.fisher_samples],
            seed=self.plan.seed,
            dtype=self.dtype,
            relative=self.relative,
            keep=keep,
        )

    def order_units(self) -> list[OrderedUnit]:
        """Return all units with their groups ordered; only layers up to the last that isn't saved run."""
        layers, saved = range(len(self.layerwise.layers)), self.layer_journal.has
        missing = [layer for layer in layers if not saved(f"statistics-{layer}")]
        units = self._measure(missing) if missing else {}
        with self.meter.stage("statistics"):
            units |= {layer: self._units(layer, dict) for layer in layers if layer not in units}
        return [unit for layer in layers for unit in units[layer]]

    def _measure(self, missing: Sequence[int]) -> dict[int, list[OrderedUnit]]:
        """Run the windows through all layers up to the last missing one, and return the units of the missing ones."""
        units, layers = {}, missing[-1] + 1
        with self.meter.stage("statistics"):
            share = self.windows.tokens[processes.share(len(self.windows))]
            sequences = with_first_tokens(share, self.plan.first_tokens, self.windows.start_token)
            states = HiddenStates(self.layerwise, sequences, self.dtype)
        with progress_bar(layers, "Statistics", "layer") as bar:
            for index, layer in islice(self.layerwise.iter_layers(), layers):
                own = [unit for unit in self.variants[0] if unit.unit.layer == index and index in missing]
                with self.meter.stage("statistics"):
                    statistics = collect_statistics(
                        partial(states.advance, layer, index, self.plan.batch_size * self.windows.length),
                        own,
                        self.relative,
                    )
                if own:
                    measure = partial(processes.tensors_on_main, partial(self._order, index, statistics))
                    units[index] = self._units(index, measure)
                    del measure
                del statistics
                bar.update()
        return units

    def _units(self, layer: int, measure: Callable[[], dict[str, torch.Tensor]]) -> list[OrderedUnit]:
        """Return the ordered units of a layer, from the journal if they are saved."""
        entry = self.layer_journal.tensors(f"statistics-{layer}", measure)
        copies_factors = self.layerwise.device.type == "cuda" and self.matrix_device.type == "cpu"
        pins = copies_factors and self.plan.needs_factors and not self.journal.on_disk
        units = []
        for member in units_of_layer(self.variants[0], layer):
            order, group, factor, curve = (entry[f"{member}.{name}"] for name in ("order", "group", "factor", "curve"))
            kind, factor = [*GROUP_NAMES][int(group)], factor.to(self.matrix_device)
            unit = next(variant[member] for variant in self.variants if variant[member].unit.group == kind)
            # Pinned, since factors are copied to the GPU one at a time.
            units.append((unit, order.cpu(), pin(factor) if pins else factor, curve.numpy()))
        return units

    def _order(self, layer: int, statistics: list[Statistics]) -> dict[str, torch.Tensor]:
        """Order the units of a layer, and return their tensors by member and name."""
        tensors = {}
        for member in units_of_layer(self.variants[0], layer):
            found = statistics.pop(0)
            device = algebra_device(found.gram.device, len(found.gram))
            found = Statistics(found.gram.to(device), found.mean.to(device))
            # Variants differ in attention only.
            units = {variant[member].unit: variant[member] for variant in self.variants}
            with self.meter.stage("importance"):
                ordered = order_unit([*units.values()], found, self.fishers[member], self.plan)
            tensors |= {f"{member}.{name}": tensor for name, tensor in ordered.items()}
            del found
        return tensors

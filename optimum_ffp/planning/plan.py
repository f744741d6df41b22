"""The plan of a prune: work, memory and disk, from the model's config alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PretrainedConfig

from ..allocation.policy import GROUP_NAMES, Unit
from ..analysis.attention import find_ways
from ..analysis.gram import describe_shortage
from ..config.prune import FFPConfig, check_sparsity
from ..data import DataRequest, check_calibration_tokens, with_window_length
from ..data.self_generated import NEEDS_WEIGHTS
from ..engine.operations import head_share
from ..errors import FFPError
from ..modeling import is_homogeneous
from ..modeling.families import find_family
from ..modeling.loading import LoadOptions, empty_model, loading_errors, resolve_dtype
from ..modeling.offloading import check_offload
from ..search.runner import budget_at, check_budget
from ..utils.precision import autocast_dtype, compute_dtype
from ..utils.processes import machines as run_machines
from .counts import calibrating_processes, count_searches, count_tokens, count_walks
from .machine import Machine, measure_machine
from .memory import MemoryModel
from .placement import StageMemory, find_placement, layer_bytes
from .work import (
    DISK_SPEED,
    EFFICIENCY,
    GIB,
    describe_lack,
    describe_time,
    gib,
    measure_copy_speed,
    measure_speed,
    stage_operations,
)


# Where the weights of layers are while they don't run, by offload.
PLACES = {"none": "where they run", "host": "in host memory (--offload host)", "disk": "on disk (--offload disk)"}
# Bytes of a checkpoint besides the weights: tokenizer, modeling code, card and plots.
BESIDE_WEIGHTS_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Plan:
    """Work, memory and disk of a prune.

    Attributes:
        model: Hub id, folder or file of the dense model.
        family: Model type.
        parameters: Number of parameters of the dense model.
        dtype: Dtype of the weights.
        ways: Units of the model by what attention may lose, as `find_ways` returns them.
        features: Columns of the output projection per unit.
        sparsities: Requested sparsities.
        feasible: Smallest and largest sparsity of the blocks within the retention bounds.
        bounds: Retention bounds.
        candidate_evaluations: Number of candidate evaluations of all searches.
        tokens: Number of tokens per stage in forward passes of the model, as in `PruningResult.cost`; for the stage
            `evaluation` those of one model, by estimate if a test split is used whole, and `None` if its length is
            unknown. An upper bound for the search. Distillation reads more where a layer gains nothing at the first
            attempt.
        operations: Floating-point operations per stage (`stage_operations`); of the evaluation if its tokens are
            known.
        walks: How often all layers are run through per stage, in the evaluation by one model and if its tokens are
            known.
        layer_bytes: Bytes of the weights of all layers.
        compute_dtype: Dtype of most matrix products.
        evaluated: Number of models that are evaluated on the test windows.
        memory: Memory per stage, in the order of the stages.
        disk: Bytes written per stage: work to resume from, which is removed at the end, and checkpoints.
        machine: Device and available memory.
        offload: Where the weights of layers are while they don't run, as in `LoadOptions`.
        processes: Number of processes on this machine, each with the memory of a stage.
        machines: Number of machines.
        calibrated_by: Number of all processes that share calibration.
    """

    model: str
    family: str
    parameters: int
    dtype: torch.dtype
    ways: tuple[tuple[Unit, ...], ...]
    features: tuple[int, ...]
    sparsities: tuple[float, ...]
    feasible: tuple[float, float]
    bounds: tuple[float, float]
    candidate_evaluations: int
    tokens: dict[str, int | None]
    operations: dict[str, float]
    walks: dict[str, int]
    layer_bytes: int
    compute_dtype: torch.dtype
    evaluated: int
    memory: tuple[StageMemory, ...]
    disk: dict[str, int]
    machine: Machine
    offload: str = "none"
    processes: int = 1
    machines: int = 1
    calibrated_by: int = 1

    @property
    def all_operations(self) -> dict[str, float]:
        """Operations per stage, those of the evaluation for all models."""
        return self._of_all_models(self.operations)

    @property
    def brought_bytes(self) -> dict[str, int]:
        """Bytes of weights that every process brings to its device per stage, where layers are offloaded."""
        walks = self._of_all_models(self.walks) if self.offload != "none" else {}
        return {stage: count * self.layer_bytes for stage, count in walks.items()}

    @property
    def read_bytes(self) -> dict[str, int]:
        """Bytes read from disk per stage: after the first time none, if memory can keep the files."""
        if self.offload != "disk":
            return {}
        brought = self.brought_bytes
        kept = max(map(self.host_bytes, self.memory)) + self.layer_bytes < self.machine.host_free
        return {next(iter(brought)): self.layer_bytes} if kept else brought

    def _of_all_models(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        return {stage: count * (self.evaluated if stage == "evaluation" else 1) for stage, count in counts.items()}

    def host_bytes(self, stage: StageMemory) -> int:
        """Estimated peak of host memory of all processes in a stage."""
        on_host = self.machine.device_free is None
        return self.processes * (sum(stage.host.values()) + (sum(stage.device.values()) if on_host else 0))

    def device_bytes(self, stage: StageMemory) -> int:
        """Estimated peak of accelerator memory in a stage; 0 without an accelerator."""
        return 0 if self.machine.device_free is None else sum(stage.device.values())

    @property
    def peak_bytes(self) -> int:
        """Estimated peak of the memory that `PruningResult.cost` measures: of the accelerator, or of the process."""
        used = self.host_bytes if self.machine.device_free is None else self.device_bytes
        return max(map(used, self.memory))

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk that the prune writes, including all checkpoints."""
        return sum(self.disk.values())

    @property
    def warnings(self) -> list[str]:
        """One line per kind of memory that is not sufficient."""
        found = []
        for where, used, free in (
            ("memory", self.host_bytes, self.machine.host_free),
            (f"memory on {self.machine.device}", self.device_bytes, self.machine.device_free),
        ):
            stage = max(self.memory, key=used)
            if free is not None and used(stage) > free:
                lack = describe_lack(stage.name, used(stage), where, free)
                found.append(f"{lack}. Largest parts: {stage.largest()} GiB")
        return found

    @property
    def advice(self) -> list[str]:
        """One line if the processes of a CPU are slower than one of them."""
        if self.machine.device_free is not None or self.machines > 1 or self.calibrated_by == self.processes:
            return []
        return [
            f"a step of distillation is computed by {self.calibrated_by} of the {self.processes} processes with its "
            "share of the CPU: one process alone is probably faster, or raise --distillation-batch"
        ]

    def describe(self) -> str:
        """The plan as text of several lines."""
        low, high = self.feasible
        counts = Counter(map(_describe_unit, zip(*self.ways)))
        several, each = self.processes * self.machines > 1, f" on each of {self.machines} machines"
        processes = f"{self.processes}{each if self.machines > 1 else ''}, memory is that of all"
        rows = [
            ("model", f"{self.model}: {self.parameters:,} parameters, {str(self.dtype).removeprefix('torch.')}"),
            ("family", self.family),
            ("units", ", ".join(f"{count} x {unit}" for unit, count in counts.items())),
            ("sparsity of the blocks", ", ".join(f"{sparsity:.2%}" for sparsity in self.sparsities)),
            ("feasible", f"{low:.2%} to {high:.2%}, at retentions of {self.bounds[0]:g} to {self.bounds[1]:g}"),
            ("weights of layers", PLACES[self.offload]),
            *([("processes", processes)] if several else []),
            ("candidate evaluations", f"{self.candidate_evaluations:,}"),
            *((f"tokens, {stage}", self._describe_tokens(stage, count)) for stage, count in self.tokens.items()),
            *self._describe_time(),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        columns: dict[str, Callable[[StageMemory], int]] = {"memory": self.host_bytes}
        if self.machine.device_free is not None:
            columns["device"] = self.device_bytes
        columns["disk"] = lambda stage: self.disk.get(stage.name, 0)
        lines += ["", f"{'GiB':<{width}}" + "".join(f"{name:>9}" for name in columns) + "   largest parts"]
        for stage in self.memory:
            figures = "".join(f"{column(stage) / GIB:9.2f}" for column in columns.values())
            lines.append(f"{stage.name:<{width}}{figures}   {stage.largest()}")
        free = f"{gib(self.machine.host_free)} of memory are free"
        if self.machine.device_free is not None:
            free += f", and {gib(self.machine.device_free)} on {self.machine.device}"
        lines += ["", f"estimated peak {gib(self.peak_bytes)} on {self.machine.device}; {free}"]
        lines += [*(self.warnings or ["it fits into memory"]), *self.advice]
        # Based on the requested number of tokens: the text may be shorter.
        shortage = describe_shortage(self.features, self.tokens["statistics"])
        return "\n".join(lines + ([shortage] if shortage else []))

    def _describe_time(self) -> Iterator[tuple[str, str]]:
        counts, brought, read = self.all_operations, self.brought_bytes, self.read_bytes
        everyone = self.processes * self.machines
        # The main process writes text alone, and processes that don't share the calibration wait for it.
        waiting = {"data": everyone, "calibration": everyone / self.calibrated_by}
        # Processes on the CPU share its cores.
        speed = measure_speed(self.machine.device, self.compute_dtype)
        speed *= self.machines * (1 if self.machine.device_free is None else self.processes)
        copy_speed = measure_copy_speed(self.machine.device, self.offload == "host") if brought else 1.0
        seconds = 0.0
        for stage in {**counts, **brought}:
            # The next layer is brought while one runs.
            bringing = brought.get(stage, 0) / copy_speed + read.get(stage, 0) / DISK_SPEED
            seconds += max(waiting.get(stage, 1) * counts.get(stage, 0) / (EFFICIENCY * speed), bringing)
        rest = " and the evaluation" if self.tokens["evaluation"] is None else ""
        yield "time", describe_time(sum(counts.values()), seconds, speed, rest)
        if brought:
            total = sum(brought.values())
            text = f"{gib(total)}, all layers {total // self.layer_bytes:,} times, at {gib(round(copy_speed))}/s"
            if read:
                text += f"; {gib(sum(read.values()))} of them from disk, which is taken to read {gib(DISK_SPEED)}/s"
            yield "weights brought", text

    def _describe_tokens(self, stage: str, count: int | None) -> str:
        if stage == "evaluation":
            found = "all of the test text" if count is None else f"{count:,}"
            return f"{found}, {self.evaluated} times"
        if stage == "data":
            return f"{count:,}, written by the model"
        return f"{'at most ' if stage == 'search' else ''}{count:,}"


def _describe_unit(ways: tuple[Unit, ...]) -> str:
    unit = ways[0]
    if unit.group == "all_heads":
        return f"{unit.kind}, which stays whole"
    groups = dict.fromkeys(f"{one.groups:,} {GROUP_NAMES[one.group]}" for one in ways)
    return f"{unit.kind} of {' or '.join(groups)}" + (f" in steps of {unit.multiple}" if unit.multiple > 1 else "")


def make_plan(
    model_config: PretrainedConfig,
    config: FFPConfig | None = None,
    sparsities: Sequence[float] | None = None,
    options: LoadOptions | None = None,
    journal: bool = True,
    processes: int = 1,
    machines: int | None = None,
) -> Plan:
    """Plans a prune without loading weights.

    Args:
        model_config: Config of the dense model.
        config: Options; the defaults if `None`.
        sparsities: Fractions of the block parameters to remove; `config.sparsity` if `None`.
        options: How the model will be loaded; all accelerators of a device map count as one. Without it, or with the
            offload `"auto"`, weights are at the first place that the memory suffices for, or else where they need the
            least.
        journal: Whether finished work is saved to disk, to resume from, as on the command line.
        processes: Number of processes on each machine that share the work.
        machines: Number of machines; that of this run if `None`.

    Returns:
        The plan; the command line prints its `describe()`.

    Raises:
        FFPError: If the model can't be pruned, a sparsity can't be met, or layers can't be offloaded, as those of a
            model that writes text.
    """
    config = with_window_length(config or FFPConfig(), model_config)
    sparsities = tuple(sparsities or [config.sparsity])
    machines = run_machines() if machines is None else machines
    for sparsity in sparsities:
        check_sparsity(sparsity)
    options = options or LoadOptions(offload="auto")
    family, machine = find_family(model_config), measure_machine(options.device)
    found = model_config.dtype or torch.float32
    weights_dtype = found if (asked := resolve_dtype(options.dtype)) == "auto" else asked
    name = model_config._name_or_path or "the model"
    if options.offload != "auto":
        check_offload(options.offload, machine.device, asked, model_config, name.endswith(".gguf"))
    model = empty_model(model_config, weights_dtype)
    with loading_errors(name, None):
        ways = find_ways(model, family, config)
    units, shapes = ways[0], tuple(tuple(unit.unit for unit in way) for way in ways)
    for sparsity in sparsities:
        check_budget(shapes, sparsity, config, partial(is_homogeneous, model, family))
    feasible = [budget_at(way, sparsities[0], config).feasible for way in shapes]

    own = compute_dtype(machine.device, weights_dtype)
    compute = autocast_dtype(SimpleNamespace(dtype=weights_dtype, device=machine.device), config.search_dtype)
    features = tuple(unit.output.module.in_features for unit in units)
    check_calibration_tokens(config.num_samples * config.seq_len, max(features))
    tokens = count_tokens(config, len(units), len(sparsities), head_share(model, config.seq_len))
    results = config.reports_searched + (config.calibration != "none")
    common = {
        "model": name,
        "family": model_config.model_type,
        "parameters": model.num_parameters(),
        "dtype": weights_dtype,
        "ways": shapes,
        "features": features,
        "sparsities": sparsities,
        "feasible": (max(low for low, _ in feasible), min(high for _, high in feasible)),
        "bounds": (config.min_retention, config.max_retention),
        "candidate_evaluations": sum(map(sum, count_searches(config, len(sparsities)))),
        "tokens": tokens,
        "operations": stage_operations(model, units, config, tokens, len(sparsities)),
        "layer_bytes": layer_bytes(model),
        "compute_dtype": compute or own,
        "evaluated": 1 + results * len(sparsities),
        "machine": machine,
        "processes": processes,
        "machines": machines,
        "calibrated_by": calibrating_processes(config, processes * machines),
    }
    shared = {
        "compute_size": (compute or own).itemsize,
        "own_size": own.itemsize,
        "journal": journal,
        "several": len(sparsities) > 1,
        "processes": processes * machines,
        "machines": machines,
    }
    reads_files = journal and not name.endswith(".gguf") and asked in ("auto", found)
    for place in _places(options, config, machine, reads_files):
        placement = find_placement(place, model, features, machine, **shared)
        # The smallest sparsity has the largest pruned model.
        models = [MemoryModel(model, units, family, config, sparsity, placement) for sparsity in sorted(sparsities)]
        walks = count_walks(config, len(units), len(sparsities), processes * machines, models[0].at_once)
        plan = Plan(
            memory=tuple(models[0].stages()),
            disk=_disk(models, config, journal),
            walks={stage: count for stage, count in walks.items() if count is not None},
            offload=place,
            **common,
        )
        if not plan.warnings:
            break
    return plan


def _places(options: LoadOptions, config: FFPConfig, machine: Machine, reads_files: bool) -> list[str]:
    """Where the weights of layers may be, in the order to try."""
    accelerator = machine.device_free is not None
    # A model that writes text has all weights on its device.
    writes = accelerator and DataRequest.of(config).all_written(config.dataset, config.eval_dataset)
    if options.offload != "auto":
        if writes and options.offload != "none":
            raise FFPError(NEEDS_WEIGHTS)
        return [options.offload]
    if writes:
        return ["none"]
    return ["none", *["host"] * accelerator, *["disk"] * reads_files]


def _disk(models: Sequence[MemoryModel], config: FFPConfig, journal: bool) -> dict[str, int]:
    """Bytes written per stage, for models by sparsity."""
    written = {"statistics": models[0].factors, "fisher": models[0].fishers}
    if config.calibration == "distillation" or models[0].placement.offload == "disk":
        written["calibration"] = sum(one.calibrated for one in models)
    if models[0].placement.offload == "disk":
        written["slicing"] = sum(one.pruned for one in models)
    return (written if journal else {}) | {"save": sum(one.pruned + BESIDE_WEIGHTS_BYTES for one in models)}

"""Estimates of the memory, disk and tokens of a prune or a recovery, from its plan and the shapes of the models."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from ..analysis.gram import ordering_bytes
from ..analysis.rerouting import rerouting_bytes
from ..compression.calibrations import layers
from ..compression.calibrations import model as model_calibration
from ..compression.expert_ridge import fit_bytes
from ..compression.ridge import factor_bytes
from ..compression.training import end_to_end
from ..compression.training import layer as layer_training
from ..compression.training.batch import Batch
from ..compression.training.whole_model import training_batch, trains_in_bfloat16
from ..config import RecoveryPlan
from ..config.prune import GRADIENT_COST
from ..data import DataRequest, load_windows
from ..data.self_generated import cache_bytes
from ..engine.layer_runner import activation_bytes
from ..engine.layerwise_model import HEADROOM, hidden_state_bytes
from ..errors import FFPError
from ..evaluation.table import format_rows
from ..modeling.families import Mixture, ModelUnit, decoder_layers, find_family, outer_matrices
from ..modeling.limits import dropped_parameters
from ..modeling.loading import LoadOptions, load_tokenizer, resolve_device
from ..plan import Plan
from ..search.runner import search_windows
from ..utils import processes
from ..utils.device_memory import free_device_memory
from ..utils.host_memory import free_host_memory
from ..utils.lm_head import logit_bytes
from ..utils.precision import compute_dtype, computes_in_bfloat16, frozen_dtype
from .probe import seconds_per_token


# Memory of a process with all libraries loaded and their threads started.
PROCESS_BYTES = 640 * 2**20
# Bytes of a checkpoint other than weights: tokenizer, modeling code, card and plots.
CHECKPOINT_EXTRA_BYTES = 32 * 2**20
# Bytes of a process on its `device`, which may be the host, and of the `host` besides.
Memory = Counter[str]
# Overhead of pinned memory, which is allocated in powers of two.
PINNED = 1.2
# Time of a run relative to that of its tokens in forward passes, as measured.
TIME_RANGE = 1, 2


@dataclass(frozen=True)
class Machine:
    """A device, and the memory available to this process, including what the process already uses.

    Attributes:
        device: Device of the model.
        host: Bytes of host memory.
        accelerator: Bytes of the accelerator; `None` if the model is in host memory.
    """

    device: torch.device
    host: int
    accelerator: int | None = None

    @classmethod
    def of(cls, device: str | None) -> "Machine":
        """Measure this machine; raise `FFPError` if there is no such device."""
        resolved = resolve_device(device)
        return cls(resolved, free_host_memory(), free_device_memory(resolved, used=True))


@dataclass(frozen=True, repr=False)
class Estimate:
    """Resources that a prune or a recovery requires, printed as by `--plan`.

    Attributes:
        machine: The device, and the memory that is available.
        device: Bytes on the accelerator of a process; 0 without one.
        host: Bytes of host memory, of all processes on this machine.
        disk: Bytes of the work folder and of the checkpoints.
        tokens: Upper bound of the tokens read in forward passes of the model, without the evaluation.
        token_seconds: Time of a forward pass of the model per token on this machine, if it was measured.
        offload: Where the weights of idle layers are, as in `LoadOptions`.
        calibration: Calibration of a prune, which may be chosen by the free memory.
        lora: Rank of the adapters that a prune trains; 0 if it trains weights.
        budget: A line per limit of every prune.
        quantized: Bytes of the dense weights in quantizations of llama.cpp, which need no prune.
        text: How many windows local text fills.
        problems: Why it can't be used.
    """

    machine: Machine
    device: int
    host: int
    disk: int
    tokens: int = 0
    token_seconds: float | None = None
    offload: str = "none"
    calibration: str | None = None
    lora: int = 0
    budget: Sequence[str] = ()
    quantized: Mapping[str, int] = field(default_factory=dict)
    text: str | None = None
    problems: tuple[FFPError, ...] = ()

    @property
    def memory(self) -> dict[str, tuple[int, int]]:
        """Required and available bytes, by kind of memory."""
        host = {"host memory": (self.host, self.machine.host)}
        if self.machine.accelerator is None:
            return host
        return {f"memory of {self.machine.device}": (self.device, self.machine.accelerator)} | host

    @property
    def seconds(self) -> list[float]:
        """Minimum and maximum time, without the evaluation; empty if the speed was not measured."""
        return [factor * self.tokens * self.token_seconds for factor in TIME_RANGE] if self.token_seconds else []

    @property
    def warnings(self) -> list[str]:
        """One line per kind of memory that may not suffice."""
        return [
            f"memory may not suffice: an estimated {format_bytes(needed)} of {name} is needed, and "
            f"{format_bytes(available)} is free"
            for name, (needed, available) in self.memory.items()
            if needed > available
        ]

    def describe(self, free_disk: int | None = None) -> str:
        """Format all resources and the warnings, with the free bytes of the disk if they are known."""
        rows = {"budget": "; ".join(self.budget)} if self.budget else {}
        for name, (needed, available) in (self.memory | {"disk": (self.disk, free_disk)}).items():
            free = "" if available is None else f", {format_bytes(available)} available"
            rows[name] = f"{format_bytes(needed)} needed{free}"
        if self.calibration:
            lora = f" with LoRA of rank {self.lora}" if self.lora else ""
            rows |= {"calibration": self.calibration + lora, "offload": self.offload}
        if self.text:
            rows["text"] = self.text
        rows["tokens"] = f"at most {self.tokens:,}, plus those of the evaluation"
        if self.seconds:
            rows["time"] = f"{format_range(*self.seconds)} in one process on this machine, plus the evaluation"
        if self.quantized:
            sizes = " and ".join(f"{format_bytes(size)} in {name}" for name, size in self.quantized.items())
            rows["quantizing"] = f"the dense weights alone would take about {sizes}"
        return "\n".join([format_rows(rows.items()), *(f"warning: {warning}" for warning in self.warnings)])

    __repr__ = describe


def format_bytes(size: int) -> str:
    """Format a number of bytes in GiB, or in MiB if it is less than 1 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def format_range(low: float, high: float) -> str:
    """Format a range of seconds in the largest unit of which it is at least two."""
    units = ("hours", 3600), ("minutes", 60), ("seconds", 1)
    unit, size = next((one for one in units if low >= 2 * one[1]), units[-1])
    return f"{low / size:,.0f} to {high / size:,.0f} {unit}"


@dataclass
class PruneEstimator:
    """Estimates prunes that differ in the budget. Sizes are bytes, `layers` and `trained` parameters.

    Attributes:
        plans: The plans, with the same calibration and place of weights.
        model: The dense model; may be on the meta device.
        units: Its units.
        machine: Device and available memory.
        local_processes: Number of processes on this machine that share the work.
        saves_work: Whether finished work is saved to disk.
    """

    plans: Sequence[Plan]
    model: PreTrainedModel
    units: Sequence[ModelUnit]
    machine: Machine
    local_processes: int
    saves_work: bool

    def __post_init__(self) -> None:
        model, plan = self.model, self.plans[0]
        self.plan, self.written = plan, DataRequest.of_prune(plan).generated
        self.stored, self.computed = model.dtype.itemsize, compute_dtype(self.machine.device, model.dtype).itemsize
        self.all_resident = plan.offload == "none" and self.computed == self.stored
        self.maps_work = self.saves_work and (plan.offload == "disk" or self.machine.accelerator is None)
        is_quantized = hasattr(model.config, "quantization_config")
        self.converts = plan.offload == "disk" and (is_quantized or model.config._name_or_path.endswith(".gguf"))
        self.layers = [sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(model)]
        self.weights, self.in_layers = model.get_memory_footprint(), sum(self.layers) * self.stored
        removed = min(one.budget.removed_parameters for one in self.plans) * self.stored
        dropped = min(dropped_parameters(model, one.vocabulary) for one in self.plans)
        self.pruned = self.weights - removed - dropped * self.stored
        self.calibrated = self.in_layers - removed if plan.trains else 0
        self.widest = max(unit.width for unit in self.units)
        self.factors = self.fishers = self.experts = self.routed = self.trained = 0
        self.prunes_experts = plan.budget.units[0].kind == "experts"
        if self.prunes_experts:
            # A token passes through several experts at once.
            self.widest *= model.config.num_experts_per_tok
            self.experts = self.stored * sum(unit.unit.parameters for unit in self.units)
            greedy = rerouting_bytes(self.units[0].unit.groups) if plan.expert_criterion == "loss" else 0
            tokens = 0 if plan.calibration == "none" else plan.num_samples * plan.seq_len
            self.routed = max(greedy, fit_bytes(tokens, model.config.hidden_size, self.computed))
        else:
            if plan.needs_factors:
                self.factors = factor_bytes(unit.width for unit in self.units)
            if plan.needs_fishers:
                self.fishers = 4 * len(self.units) * model.config.hidden_size**2
        if plan.calibration == "model":
            self.trained = end_to_end.trained_parameters(model, self.pruned // self.stored, plan.lora)
            if dropped and not plan.lora:
                # The rows of the kept tokens too.
                self.trained = self.pruned // self.stored
        self.free = max(0, (self.machine.accelerator or 0) - self.resident()["device"])

    def in_memory(self, size: int) -> int:
        """Return the bytes of finished work in host memory: none if it is memory-mapped from disk."""
        return 0 if self.maps_work else size

    def resident(self) -> Memory:
        """Return the memory of the weights in all stages."""
        # A model that was pruned before is in memory beside the dense one, and as large.
        weights = self.weights * (2 if hasattr(self.model.config, "pruned_units") else 1)
        # One layer before and after sorting, and the next one.
        moved = 0 if self.all_resident else 3 * max(self.layers) * self.computed
        if self.plan.offload == "none":
            return Counter(device=weights + moved)
        moved += weights - self.in_layers
        return Counter(device=moved, host=self.in_memory(int(PINNED * self.in_layers)))

    def ridge_factors(self) -> Memory:
        """Return the memory of the ridge factors in all stages."""
        if self.plan.offload == "none" and (self.machine.accelerator is None or self.free > 2 * self.factors):
            return Counter(device=self.in_memory(self.factors) or factor_bytes([self.widest]))
        return Counter(device=factor_bytes([self.widest]), host=self.in_memory(int(PINNED * self.factors)))

    def hidden_states(self, size: int) -> Memory:
        """Return the memory of hidden states between layers, which processes share in host memory."""
        on_device = HEADROOM * size < self.free
        return Counter(device=size) if on_device else Counter(host=size // self.local_processes)

    def stages(self) -> Iterator[Memory]:
        """Yield the memory of each stage, without what all stages need."""
        plan, shape, length, parameters = self.plan, self.model.config, self.plan.seq_len, max(self.layers)
        window = length * shape.hidden_size * self.computed
        chunk = hidden_state_bytes(self.all_resident, self.machine.host, self.local_processes, self.free)
        backward = (len(self.layers) + 2) * max(plan.fisher_samples, plan.update_samples) * window
        read = self.hidden_states(max(min(chunk, backward), plan.num_samples * window))
        activations = activation_bytes(shape, length, self.widest, self.computed)
        logits = logit_bytes(shape.vocab_size, length, plan.batch_size)
        yield read + Counter(device=logits + (1 + plan.batch_size) * activations, host=self.fishers)
        ordering = ordering_bytes(self.widest)
        ordered = Counter(device=ordering) if ordering < self.free else Counter(host=ordering)
        yield read + ordered + Counter(host=self.in_memory(self.fishers))
        options = plan.options.get("calibration")
        if self.calibrated and isinstance(options, layers.Options) and options.distillation_passes:
            # Those of the dense and of the pruned model.
            states = self.hidden_states(2 * (plan.num_samples + plan.held_out_samples) * window)
            used = layer_training.training_bytes(parameters) + 2 * activations
            yield states + Counter(device=used, host=self.in_memory(self.calibrated))
        yield Counter(host=self.in_memory(self.calibrated + self.pruned * min(2, len(self.plans))))
        yield read + Counter(device=self.routed)
        if self.converts:
            yield Counter(host=self.weights)
        if self.written:
            _, heads, head_dim = find_family(shape).heads(shape)
            cache = cache_bytes(self.written * length, len(self.layers), heads, head_dim, self.computed)
            converted = 0 if self.computed == self.stored else sum(self.layers) * self.computed
            yield Counter(device=cache + converted)
        if isinstance(options, model_calibration.Options):
            yield self.whole_model_training(options)

    def whole_model_training(self, options: model_calibration.Options) -> Memory:
        """Return the memory of training the whole model."""
        bf16 = trains_in_bfloat16(self.machine.device, self.model.dtype, self.plan.search_dtype)
        size = torch.bfloat16.itemsize if bf16 else self.computed
        length = self.plan.seq_len // options.parts(self.plan.seq_len)
        batch = training_batch(self.model.config, length, tokens=self.plan.num_samples * self.plan.seq_len)
        state = end_to_end.training_bytes(
            self.pruned // self.stored,
            self.trained,
            self.plan.lora,
            stored=self.computed if self.plan.lora else 4,
            computed=size,
            shares=self.local_processes,
        )
        teacher = 0 if size == self.stored else self.weights // self.stored * size
        activations = end_to_end.activation_bytes(self.model, batch, size)
        return Counter(device=teacher + state + activations, host=self.calibrated + self.pruned)

    def estimate(self) -> Estimate:
        """Return the resources that all of them need."""
        plan, always = self.plan, self.resident() + self.ridge_factors()
        needed = [always + stage for stage in self.stages()]
        device, host = max(one["device"] for one in needed), max(one["host"] for one in needed)
        if self.machine.accelerator is None:
            device, host = 0, max(one.total() for one in needed)
        on_disk = self.pruned * (2 if self.maps_work else 1) + self.calibrated + CHECKPOINT_EXTRA_BYTES
        work = self.factors + self.fishers + 3 * 12 * self.trained
        if plan.offload == "disk":
            work += self.weights if self.converts else self.experts
        parameters, outer = self.model.num_parameters(), sum(one.numel() for one in outer_matrices(self.model))
        return Estimate(
            machine=self.machine,
            device=device,
            host=self.local_processes * (PROCESS_BYTES + host),
            disk=len(self.plans) * on_disk + work,
            tokens=max_tokens(self.plans),
            offload=plan.offload,
            calibration=plan.calibration,
            lora=plan.lora,
            budget=[line for one in self.plans for line in one.describe_budget()],
            quantized={
                # Embeddings and the head stay in 8 bits; both have a scale per block of 32.
                "q8_0": round(parameters * 8.5 / 8),
                "q4_0": round(((parameters - outer) * 4.5 + outer * 8.5) / 8),
            },
        )


def max_tokens(plans: Sequence[Plan]) -> int:
    """Return an upper bound of the tokens of prunes, with those of the windows that the model writes."""
    plan, options = plans[0], plans[0].options.get("calibration")
    # Predictions of the dense model choose the tokens to keep; if nothing else is pruned, layers aren't measured.
    passes = 2 if plan.vocabulary and not plan.vocabulary_alone else 1
    measured, calibrated, has_gradients = passes * plan.num_samples, 0, plan.needs_fishers
    if isinstance(options, layers.Options):
        calibrated = options.windows(plan.num_samples, plan.held_out_samples)
    if plan.budget.units[0].kind == "experts":
        has_gradients = plan.expert_criterion == "loss"
        calibrated += 0 if plan.calibration == "none" else plan.num_samples + 4 * plan.held_out_samples
    if has_gradients:
        measured += GRADIENT_COST * min(plan.fisher_samples, plan.num_samples)
    others = DataRequest.of_prune(plan).generated + plan.search_samples + sum(map(search_windows, plans))
    # Start tokens, and tokens that are also read as the first of a text.
    repeated = 1.1 + (1 / plan.first_tokens if plan.first_tokens else 0)
    return math.ceil((repeated * (measured + len(plans) * calibrated) + others) * plan.seq_len)


def with_time(estimate: Estimate, model: PreTrainedModel, length: int) -> Estimate:
    """Return an estimate with a time, unless memory may not suffice or a token's experts depend on the weights."""
    if estimate.warnings or isinstance(find_family(model.config), Mixture):
        return estimate
    return replace(estimate, token_seconds=seconds_per_token(model, estimate.machine.device, length))


def refine(
    estimate: Estimate, plans: Sequence[Plan], model: PreTrainedModel, model_id: str, options: LoadOptions
) -> Estimate:
    """Return an estimate with a time, for no more windows than the text of prunes fills if all of it is local."""
    plan, request = plans[0], replace(DataRequest.of_prune(plans[0]), reported=plans[0].texts, test=1)
    estimate = with_time(estimate, model, plan.seq_len)
    if not plan.texts.is_local:
        return estimate
    try:
        tokenizer = load_tokenizer(model_id, options)
    except FFPError:
        # The config is enough for the rest of a plan.
        return estimate
    try:
        data = load_windows(tokenizer, model, request)
    except FFPError as problem:
        return replace(estimate, problems=(problem,))
    filled = {
        "num_samples": len(data.calibration),
        "search_samples": len(data.search),
        "held_out_samples": len(data.held_out),
    }
    tokens = max_tokens([replace(one, **filled) for one in plans])
    windows = f"{len(data.calibration)} of {plan.num_samples} windows of {plan.seq_len:,} tokens"
    return replace(estimate, tokens=tokens, text=f"{plan.dataset} fills {windows} to calibrate on")


def estimate_recovery(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: RecoveryPlan,
    options: LoadOptions,
    local_processes: int = 1,
    machine: Machine | None = None,
) -> Estimate:
    """Estimate a recovery: weights, gradients, moments and activations of the pruned model, and the dense model.

    Both models are loaded with `options`, or on the meta device. The windows are shared by `local_processes` of this
    machine, which is measured if `machine` is `None`.
    """
    machine, asked = machine or Machine.of(options.device), options.torch_dtype
    on_accelerator = machine.accelerator is not None
    shares = local_processes * processes.count() // processes.local_count()
    batch, bf16 = Batch.of_recovery(plan, student.config, shares), computes_in_bfloat16(machine.device, plan.bf16)
    dense = compute_dtype(machine.device, asked if isinstance(asked, torch.dtype) else teacher.dtype)
    stored = frozen_dtype(machine.device, student.dtype, bf16) if plan.lora else torch.float32
    size = torch.bfloat16.itemsize if bf16 else stored.itemsize
    parameters = student.num_parameters()
    trained = end_to_end.trained_parameters(student, parameters, plan.lora)
    weights = end_to_end.training_bytes(
        parameters, trained, plan.lora, stored=stored.itemsize, computed=size, shares=shares
    )
    weights += teacher.num_parameters() * (size if bf16 else dense.itemsize)
    if processes.shards_models():
        # FSDP gathers the running and the next layer of both models.
        largest = max(sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(teacher))
        weights = weights // shares + 6 * size * largest
    used = weights + end_to_end.activation_bytes(student, batch, size, plan.gradient_checkpointing)
    # Weights pass through host memory on their way to an accelerator.
    staged = max(dense.itemsize * teacher.num_parameters(), 12 * trained)
    tokens = batch.steps * batch.tokens
    return Estimate(
        machine=machine,
        device=used if on_accelerator else 0,
        host=local_processes * (PROCESS_BYTES + (staged if on_accelerator else used)),
        # The windows, the best checkpoint and the last while the next is written, and the result.
        disk=8 * tokens + 3 * 12 * trained + student.get_memory_footprint() + CHECKPOINT_EXTRA_BYTES,
        tokens=(1 + GRADIENT_COST) * tokens,
    )
